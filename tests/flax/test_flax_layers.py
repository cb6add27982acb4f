"""Reading and writing the layers of Flax, and refusing those that no spec describes.

Their numbers are tested in tests/roundtrip.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import linen, nnx, traverse_util

import unirnn
from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec, Snapshot, errors
from unirnn.contract import weights as _weights

X = np.random.default_rng(0).standard_normal((2, 5, 3)).astype("float32")


def run(snapshot: Snapshot, x: Any) -> Any:
    """The output of the layer, computed by NumPy."""
    return snapshot.build("numpy")(x)[0]


def rnn(cell: Any, *, input_size: int = 3, options: Any = None, **arguments: Any) -> Any:
    return nnx.RNN(cell(input_size, 4, rngs=nnx.Rngs(0), **(options or {})), **arguments)


def both(cell: Any, **arguments: Any) -> Any:
    return nnx.Bidirectional(rnn(cell), rnn(cell), **arguments)


def drawn(spec: RecurrentSpec) -> Snapshot:
    weights = {n: np.zeros_like(a) if "bias_hh" in n else a for n, a in _weights.draw(spec, 0).items()}
    return Snapshot(spec, weights).cast("float32")


def same_name(a: Any) -> Any:
    return 2 * nnx.tanh(a)


same_name.__name__ = "tanh"

SPECS: dict[str, tuple[Callable[[], Any], RecurrentSpec]] = {
    "SimpleCell": (lambda: rnn(nnx.SimpleCell), RNNSpec(3, 4, batch_first=True)),
    "SimpleCell, relu": (
        lambda: rnn(nnx.SimpleCell, options={"activation_fn": nnx.relu}),
        RNNSpec(3, 4, nonlinearity="relu", batch_first=True),
    ),
    "GRUCell": (lambda: rnn(nnx.GRUCell, time_major=True), GRUSpec(3, 4)),
    "OptimizedLSTMCell": (lambda: rnn(nnx.OptimizedLSTMCell), LSTMSpec(3, 4, batch_first=True)),
    "LSTMCell": (lambda: rnn(nnx.LSTMCell), LSTMSpec(3, 4, batch_first=True)),
    "LSTMCell, hard sigmoid": (
        lambda: rnn(nnx.LSTMCell, options={"gate_fn": nnx.hard_sigmoid}),
        LSTMSpec(3, 4, gate_activation="hard_sigmoid", batch_first=True),
    ),
    "in reverse": (
        lambda: rnn(nnx.GRUCell, reverse=True, keep_order=True),
        GRUSpec(3, 4, reverse=True, batch_first=True),
    ),
    "Bidirectional": (lambda: both(nnx.GRUCell), GRUSpec(3, 4, bidirectional=True, batch_first=True)),
    "Bidirectional, time major": (
        lambda: both(nnx.OptimizedLSTMCell, time_major=True),
        LSTMSpec(3, 4, bidirectional=True),
    ),
}


@pytest.mark.parametrize(("make", "spec"), SPECS.values(), ids=SPECS.keys())
def test_the_spec_of_a_layer(make: Callable[[], Any], spec: RecurrentSpec) -> None:
    layer = make()
    assert unirnn.snapshot(layer).spec == spec
    unirnn.load_weights(layer, drawn(spec))
    assert unirnn.snapshot(layer) == drawn(spec)
    x = X if spec.batch_first else X.swapaxes(0, 1)
    np.testing.assert_allclose(run(unirnn.snapshot(layer), x), layer(x), atol=2e-6)


CELLS: dict[str, tuple[Any, RecurrentSpec]] = {
    "SimpleCell": (nnx.SimpleCell, RNNSpec(3, 4)),
    "GRUCell": (nnx.GRUCell, GRUSpec(3, 4)),
    "LSTMCell": (nnx.LSTMCell, LSTMSpec(3, 4)),
    "OptimizedLSTMCell": (nnx.OptimizedLSTMCell, LSTMSpec(3, 4)),
}


@pytest.mark.parametrize(("kind", "spec"), CELLS.values(), ids=CELLS.keys())
def test_a_cell_is_a_layer_of_one_step(kind: Any, spec: RecurrentSpec) -> None:
    cell = rnn(kind).cell
    assert unirnn.snapshot(cell).spec == spec
    unirnn.load_weights(cell, drawn(spec))
    assert unirnn.snapshot(cell) == drawn(spec)
    carry = jax.tree.map(lambda array: array + 0.5, cell.initialize_carry((2, 3), nnx.Rngs(0)))
    _, expected = cell(carry, X[:, 0])
    state = tuple(np.asarray(part)[None] for part in (carry[::-1] if isinstance(carry, tuple) else (carry,)))
    output, _ = unirnn.snapshot(cell).build("numpy").step(X[:, 0], *(state if len(state) == 1 else (state,)))
    np.testing.assert_allclose(output, expected, atol=1e-6)


def test_a_list_of_layers_is_a_stack() -> None:
    layers = nnx.List([rnn(nnx.GRUCell), rnn(nnx.GRUCell, input_size=4)])
    taken = unirnn.snapshot(layers)
    assert taken.spec == GRUSpec(3, 4, 2, batch_first=True)
    unirnn.load_weights(layers, drawn(taken.spec))
    assert unirnn.snapshot(layers) == drawn(taken.spec)


def test_bfloat16_weights_are_read_as_float32() -> None:
    # JAX can't draw an orthogonal matrix in bfloat16.
    options = {"param_dtype": jax.numpy.bfloat16, "recurrent_kernel_init": nnx.initializers.normal()}
    layer = rnn(nnx.GRUCell, options=options)
    taken = unirnn.snapshot(layer)
    assert taken.dtype == "float32"
    assert (taken.weights["weight_ih_l0"] == layer.cell.dense_i.kernel[...].astype("float32")[:, :12].T).all()
    with pytest.raises(errors.DTypeError, match=r"module: it is of bfloat16, which can't hold dense_i\.kernel_l0"):
        unirnn.load_weights(layer, drawn(taken.spec))
    assert unirnn.snapshot(layer) == taken
    unirnn.load_weights(layer, taken)


class OwnCell(nnx.OptimizedLSTMCell):  # type: ignore[misc]
    def __call__(self, *given: Any) -> Any:
        state, output = super().__call__(*given)
        return state, 2 * output


class OwnBeginning(nnx.GRUCell):  # type: ignore[misc]
    def initialize_carry(self, *given: Any) -> Any:
        return 1 + super().initialize_carry(*given)


class OwnRNN(nnx.RNN):  # type: ignore[misc]
    def __call__(self, *given: Any, **options: Any) -> Any:
        return 2 * super().__call__(*given, **options)


class Echo(nnx.RNNCellBase):  # type: ignore[misc]
    def __call__(self, carry: Any, inputs: Any) -> Any:
        return carry, inputs


def beginning_with_ones(layer: Any) -> Any:
    layer.cell.carry_init = jax.nn.initializers.ones  # passing it to the constructor warns
    return layer


MISTAKES: dict[str, tuple[Callable[[], Any], type[errors.UnirnnError], str]] = {
    "gives its output backwards": (
        lambda: rnn(nnx.GRUCell, reverse=True),
        errors.SpecError,
        "flax: given an RNN with reverse=True and keep_order=False, whose output is in the order in which it was",
    ),
    "another cell": (
        lambda: nnx.RNN(Echo()),
        errors.SpecError,
        "flax: given a cell Echo, expected one of SimpleCell, GRUCell, LSTMCell, OptimizedLSTMCell",
    ),
    "a direction that computes something else": (
        lambda: nnx.Bidirectional(rnn(nnx.GRUCell), OwnRNN(rnn(nnx.GRUCell).cell)),
        errors.SpecError,
        f"module: given {__name__}.OwnRNN, whose __call__ is its own, expected that of RNN",
    ),
    "a cell by itself that computes something else": (
        lambda: OwnCell(3, 4, rngs=nnx.Rngs(0)),
        errors.SpecError,
        f"module: given {__name__}.OwnCell, whose __call__ is its own, expected that of OptimizedLSTMCell",
    ),
    "another activation": (
        lambda: rnn(nnx.GRUCell, options={"activation_fn": nnx.relu}),
        errors.SpecError,
        "flax: given activation_fn=<jax",
    ),
    "another activation of the gates": (
        lambda: rnn(nnx.OptimizedLSTMCell, options={"gate_fn": nnx.tanh}),
        errors.SpecError,
        "flax: given gate_fn=<PjitFunction",
    ),
    "an activation of the same name": (
        lambda: rnn(nnx.GRUCell, options={"activation_fn": same_name}),
        errors.SpecError,
        "flax: given activation_fn=<function same_name",
    ),
    "a state that does not begin with zeros": (
        lambda: beginning_with_ones(rnn(nnx.LSTMCell)),
        errors.SpecError,
        "flax: given carry_init=<function ones",
    ),
    "a cell with its own beginning": (
        lambda: rnn(OwnBeginning),
        errors.SpecError,
        f"module: given {__name__}.OwnBeginning, whose initialize_carry is its own, expected that of GRUCell",
    ),
    "a residual": (
        lambda: rnn(nnx.SimpleCell, options={"residual": True}),
        errors.SpecError,
        "flax: given a SimpleCell with residual=True, expected one without",
    ),
    "directions that are added": (
        lambda: both(nnx.GRUCell, merge_fn=lambda a, b: a + b),
        errors.SpecError,
        "flax: given merge_fn=",
    ),
    "directions of two kinds": (
        lambda: nnx.Bidirectional(rnn(nnx.GRUCell), rnn(nnx.SimpleCell)),
        errors.SpecError,
        "flax: given directions of GRUSpec(3, 4) and RNNSpec(3, 4), expected the same",
    ),
    "a cell that computes something else": (
        lambda: rnn(OwnCell),
        errors.SpecError,
        f"module: given {__name__}.OwnCell, whose __call__ is its own, expected that of OptimizedLSTMCell",
    ),
    "not a recurrent layer": (
        lambda: nnx.Linear(3, 4, rngs=nnx.Rngs(0)),
        errors.ArgumentError,
        "obj: given flax.nnx.nn.linear.Linear, expected a module that unirnn built",
    ),
}


@pytest.mark.parametrize(("make", "kind", "words"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes(make: Callable[[], Any], kind: type[Exception], words: str) -> None:
    layer = make()
    with pytest.raises(kind) as caught:
        unirnn.snapshot(layer)
    assert str(caught.value).startswith(words)


def test_an_error_about_lost_biases_changes_nothing() -> None:
    layers = [rnn(nnx.GRUCell), rnn(nnx.GRUCell, input_size=4)]
    before = unirnn.snapshot(layers)
    spec = GRUSpec(3, 4, 2)
    lossy = dict(drawn(spec).weights)
    lossy["bias_hh_l1"] = lossy["bias_hh_l1"] + 1
    with pytest.raises(errors.LimitError, match="flax: its GRUCell has no bias_hh of the gate n"):
        unirnn.load_weights(layers, Snapshot(spec, lossy))
    assert unirnn.snapshot(layers) == before


def test_directions_that_share_a_cell_cannot_differ() -> None:
    cell = rnn(nnx.GRUCell).cell
    layer = nnx.Bidirectional(nnx.RNN(cell), nnx.RNN(cell))
    before = unirnn.snapshot(layer)
    with pytest.raises(errors.ArgumentError, match="it shares a weight between layers or directions"):
        unirnn.load_weights(layer, drawn(before.spec))
    assert unirnn.snapshot(layer) == before


def test_a_snapshot_without_biases() -> None:
    layer, spec = rnn(nnx.GRUCell), GRUSpec(3, 4, bias=False, batch_first=True)
    unirnn.load_weights(layer, drawn(spec))
    held = unirnn.snapshot(layer)
    assert all((held.weights[name] == array).all() for name, array in drawn(spec).weights.items())
    assert not any(array.any() for name, array in held.weights.items() if "bias" in name)


# ---- trees of parameters -------------------------------------------------------------------------


def drawn_tree(tree: Any) -> Any:
    """A tree without zeros, which biases are at first."""
    random = np.random.default_rng(1)
    return jax.tree.map(lambda array: random.uniform(-1, 1, array.shape).astype("float32"), tree)


class Encoder(linen.Module):  # type: ignore[misc]
    @linen.compact  # type: ignore[untyped-decorator]
    def __call__(self, x: Any) -> Any:
        kinds = (linen.LSTMCell, linen.OptimizedLSTMCell, linen.GRUCell)
        return linen.Dense(2)(x), *(linen.RNN(kind(4))(x) for kind in kinds), linen.RNN(linen.SimpleCell(4))(x)


def test_cells_in_a_tree_of_linen() -> None:
    module = Encoder()
    tree = drawn_tree(module.init(jax.random.key(0), X))
    _, *outputs = module.apply(tree, X)
    specs = {
        "LSTMCell_0": LSTMSpec(3, 4),
        "OptimizedLSTMCell_0": LSTMSpec(3, 4),
        "GRUCell_0": GRUSpec(3, 4),
        "SimpleCell_0": RNNSpec(3, 4),
    }
    with pytest.raises(errors.SpecError, match="tanh or relu does not follow"):
        unirnn.snapshot(tree, prefix="params.SimpleCell_0", batch_first=True)
    for (name, spec), expected in zip(specs.items(), outputs, strict=True):
        spec = replace(spec, batch_first=True)
        given = spec if isinstance(spec, RNNSpec) else None  # a tree does not show whether it is tanh or relu
        taken = unirnn.snapshot(tree, prefix=f"params.{name}", spec=given, batch_first=True)
        assert taken.spec == spec
        np.testing.assert_allclose(taken.build("numpy")(X)[0], expected, atol=1e-6, err_msg=name)
        one = {"enc": tree["params"][name], "head": {"kernel": np.ones((4, 2))}}
        assert unirnn.snapshot(one, spec=given, batch_first=True) == taken


@pytest.mark.parametrize("kind", [nnx.GRUCell, nnx.LSTMCell, nnx.OptimizedLSTMCell])
def test_cells_in_a_tree_of_nnx(kind: Any) -> None:
    layer = rnn(kind)
    nnx.update(layer, drawn_tree(nnx.state(layer, nnx.Param)))
    for tree in (nnx.to_pure_dict(nnx.state(layer, nnx.Param)), nnx.state(layer)):
        taken = unirnn.snapshot(tree, batch_first=True)
        np.testing.assert_allclose(taken.build("numpy")(X)[0], layer(X), atol=1e-6)


@pytest.mark.parametrize("separator", [".", "/"])
def test_a_tree_in_a_file(separator: str, tmp_path: Path) -> None:
    tree = drawn_tree(linen.RNN(linen.GRUCell(4)).init(jax.random.key(0), X))
    arrays = traverse_util.flatten_dict(tree, sep=separator)
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors")
    assert list(unirnn.files.contents(tmp_path / "a.safetensors").layers) == ["params.cell."]
    taken = unirnn.load(tmp_path / "a.safetensors", batch_first=True)
    assert taken == unirnn.snapshot(tree, batch_first=True)


def test_a_tree_without_known_cells_is_refused() -> None:
    tree = linen.RNN(linen.MGUCell(4)).init(jax.random.key(0), X)
    with pytest.raises(errors.ArgumentError, match="weights: given no recurrent layer"):
        unirnn.snapshot(tree, batch_first=True)
