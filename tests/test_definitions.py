"""Models that are code, as values: their parts, and the mistakes that they refuse."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import unirnn
from unirnn import GRUSpec, LinearSpec, Model, PoolSpec, Sequential, Snapshot, Spec, errors


class Base(Model):
    """A recurrent layer and a head."""

    def __init__(self, size: int) -> None:
        self.encoder = GRUSpec(size, 4, batch_first=True)
        self.head = LinearSpec(4, 2)
        self.size = size

    @staticmethod
    def double(x: Any) -> Any:
        return 2 * x

    @property
    def num_features(self) -> int:
        return self.size

    def features(self, x: Any) -> Any:
        return self.encoder(x)[0]

    def forward(self, xp: Any, x: Any) -> Any:
        return self.double(self.head(self.features(x)))


class Deeper(Base):
    """The same with an activation before the head, and another definition inside."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.inner = Base(4)

    def features(self, x: Any) -> Any:
        return self.xp.tanh(self.encoder(x)[0])

    def forward(self, xp: Any, x: Any) -> Any:
        h = self.features(x)
        return self.head(h) + self.inner(h)


def test_a_definition_is_a_value() -> None:
    one = Base(3)
    assert one == Base(3) == copy.deepcopy(one) == pickle.loads(pickle.dumps(one))
    assert hash(one) == hash(Base(3))
    assert one != Base(4)
    assert one != Deeper(3)
    assert repr(one) == "Base(encoder=GRUSpec(3, 4, batch_first=True), head=LinearSpec(4, 2), size=3)"
    assert list(one.weight_shapes())[-2:] == ["head.weight", "head.bias"]
    assert one.fits(Base(3))
    assert not one.fits(Sequential(encoder=one.encoder, head=one.head))


def test_a_built_module_has_the_methods_and_the_attributes() -> None:
    spec = Deeper(3)
    net = spec.build("numpy", seed=0)
    x = np.ones((2, 5, 3), "float32")
    assert (net.size, net.num_features, net.double(2)) == (3, 3, 4)
    np.testing.assert_array_equal(net.features(x), np.tanh(net.encoder(x)[0]))
    np.testing.assert_array_equal(net(x), net.head(net.features(x)) + net.inner(net.features(x)))
    again = pickle.loads(pickle.dumps(net))
    np.testing.assert_array_equal(again(x), net(x))
    assert spec == Deeper(3)  # the definition can be built elsewhere too


def test_training_reaches_all_layers() -> None:
    net = Deeper(3).build("numpy", seed=0).train()
    assert net.training
    assert net.head.training
    assert net.inner.head.training
    assert not net.eval().inner.encoder.training


class WithoutForward(Model):
    def __init__(self) -> None:
        self.head = LinearSpec(4, 2)


def definition(**attributes: Any) -> Model:
    class Some(Model):
        def __init__(self) -> None:
            for name, value in attributes.items():
                setattr(self, name, value)

        def forward(self, xp: Any, x: Any) -> Any:
            return x

    return Some()


def with_member(name: str, member: Any) -> Model:
    made: Model = type("Some", (Base,), {name: member})(3)
    return made


def with_super() -> Model:
    class Some(Base):
        def features(self, x: Any) -> Any:
            return 2 * super().features(x)

    return Some(3)


MISTAKES: dict[str, tuple[Any, type[Exception], str]] = {
    "no forward": (WithoutForward, errors.ArgumentError, r"WithoutForward: it has no forward, expected a method"),
    "a list of layers": (
        lambda: definition(blocks=[LinearSpec(3, 4)]),
        errors.ArgumentError,
        "Some: blocks: given a list with specs, which would not be built; set each as an attribute",
    ),
    "an input size that nothing tells": (
        lambda: definition(head=LinearSpec(out_features=3)),
        errors.SpecError,
        "head.in_features was left out",
    ),
    "two layouts": (
        lambda: definition(one=GRUSpec(3, 4), other=GRUSpec(3, 4, batch_first=True)),
        errors.SpecError,
        "one has batch_first=False, but other has batch_first=True",
    ),
    "a pooling beside layers that are time first": (
        lambda: definition(encoder=GRUSpec(3, 4), pool=PoolSpec("mean")),
        errors.SpecError,
        r"pool, PoolSpec\('mean'\), takes \(B, T, F\), but the recurrent layers have batch_first=False",
    ),
    "tied to nothing": (
        lambda: definition(head=LinearSpec(3, 4, tied_to="embedding")),
        errors.SpecError,
        "head: tied_to: given 'embedding', expected an embedding: none here",
    ),
    "code in a chain": (
        lambda: Sequential(Base(3)),
        errors.ArgumentError,
        "Sequential: 0: given Base, which is code, expected a spec that is data; a Model may hold both",
    ),
    "a set of layers": (
        lambda: definition(blocks={LinearSpec(3, 4)}),
        errors.ArgumentError,
        "Some: blocks: given a set with specs, which would not be built; set each as an attribute",
    ),
    **{
        f"an attribute with the name {name}": (
            lambda name=name: definition(**{name: LinearSpec(3, 4)}),
            errors.ArgumentError,
            f"Some: given the name {name!r}, which a Model has itself; rename it",
        )
        for name in ("forward", "children", "kind", "leaves", "build")
    },
    **{
        f"a method with the name {name}": (
            lambda name=name: with_member(name, lambda self: 3),
            errors.ArgumentError,
            f"Some: given the name {name!r}, which a Model has itself; rename it",
        )
        for name in ("tied", "weight_shapes", "kind")
    },
    **{
        f"a method with the name {name}, which is taken": (
            lambda name=name: with_member(name, lambda self: 3),
            errors.LimitError,
            f"numpy: given an attribute named {name!r}, which the built model has itself; rename it",
        )
        for name in ("weights", "layers", "_backend", "__call__")
    },
    "a layer in the class": (
        lambda: with_member("head", LinearSpec(4, 2)),
        errors.ArgumentError,
        r"Some: head: given LinearSpec\(4, 2\) in the class, expected it in __init__: self.head = ...",
    ),
    "super()": (
        with_super,
        errors.ArgumentError,
        r"Some.features: given super\(\) or __class__, which what is built does not have; call .*Base.features\(self",
    ),
    "a name that is taken": (
        lambda: definition(weights=LinearSpec(3, 4)),
        errors.LimitError,
        "numpy: given an attribute named 'weights', which the built model has itself; rename it",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes(mistake: tuple[Any, type[Exception], str]) -> None:
    make, exception, words = mistake
    with pytest.raises(exception, match=words):
        make().build("numpy", seed=0)


def test_a_built_module_keeps_its_definition_unchanged() -> None:
    spec = Deeper(3)
    net, expected = spec.build("numpy", seed=0), Deeper(3)
    spec.head = spec.inner.head = LinearSpec(4, 7)
    spec.size = spec.inner.size = 5
    assert net.spec == expected
    assert unirnn.snapshot(net).spec == expected
    assert net.num_features == 3


class Scaled(Base):
    """A definition with a constant in its class."""

    SCALE = 3.0

    def forward(self, xp: Any, x: Any) -> Any:
        return Base.forward(self, xp, x) * self.SCALE


def test_a_built_module_has_the_constants_of_the_class() -> None:
    x = np.ones((2, 5, 3), np.float32)
    np.testing.assert_allclose(Scaled(3).build("numpy", seed=0)(x), 3 * Base(3).build("numpy", seed=0)(x), rtol=1e-6)


def test_no_dict_holds_code() -> None:
    with pytest.raises(errors.SpecError, match="Model: 'Base' is code, which no dict holds; give the definition"):
        Spec.from_dict(Base(3).to_dict())


def test_calling_a_spec_is_an_error() -> None:
    with pytest.raises(errors.ArgumentError, match=r"LinearSpec\(3, 4\) is no module; build one"):
        LinearSpec(3, 4)(np.ones(3))


def test_numpy_has_no_gradients_of_code() -> None:
    net = Base(3).build("numpy", seed=0)
    assert "no gradients" in str(unirnn.explain(Base(3), "numpy"))
    with pytest.raises(errors.LimitError, match="numpy has no gradients of a model from code"):
        unirnn.registry.load("numpy").gradients(net, {}, [])


def test_a_snapshot_of_a_definition() -> None:
    taken = unirnn.snapshot(Base(3).build("numpy", seed=0))
    assert taken == Snapshot(Base(3), dict(taken.weights))
    net = taken.build("numpy")
    np.testing.assert_array_equal(net.weights["head.weight"], taken.weights["head.weight"])
