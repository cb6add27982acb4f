"""Models that are code: each function of the namespace, and cells in graph mode and in training."""

from collections.abc import Callable
from typing import Any

import array_api_compat.numpy
import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn
from unirnn_mindspore import namespace

import unirnn
from unirnn.contract.backend import leaves
from unirnn.reference.functions import namespace as with_functions
from unirnn.testing.tolerances import close

OURS: Any = namespace
NUMPY: Any = array_api_compat.numpy
STANDARD: Any = with_functions(NUMPY)
CASES: dict[str, Callable[..., Any]] = {  # of (xp, x, y, i, n): x and y (3, 4, 5), i (3, 4) integers, n (3,) lengths
    **{
        name: lambda xp, x, y, i, n, name=name: getattr(xp, name)(x)
        for name in (
            "abs",
            "negative",
            "square",
            "exp",
            "tanh",
            "sigmoid",
            "relu",
            "sin",
            "cos",
            "zeros_like",
            "ones_like",
        )
    },
    **{
        name: lambda xp, x, y, i, n, name=name: getattr(xp, name)(x, y)
        for name in (
            *("add", "subtract", "multiply", "divide", "maximum", "minimum"),
            *("equal", "not_equal", "less", "less_equal", "greater", "greater_equal"),
        )
    },
    **{
        f"{name}, axis={axis}": lambda xp, x, y, i, n, name=name, axis=axis: getattr(xp, name)(
            x, axis=axis, keepdims=True
        )
        for name in ("sum", "mean", "max", "min")
        for axis in (1, -1, (0, 2))
    },
    **{
        f"{name}, all": lambda xp, x, y, i, n, name=name: getattr(xp, name)(x) for name in ("sum", "mean", "max", "min")
    },
    "log": lambda xp, x, y, i, n: xp.log(xp.abs(x) + 1.0),
    "sqrt": lambda xp, x, y, i, n: xp.sqrt(xp.abs(x)),
    "softmax": lambda xp, x, y, i, n: xp.softmax(x, axis=1),
    "log_softmax": lambda xp, x, y, i, n: xp.log_softmax(x, axis=-1),
    "mask": lambda xp, x, y, i, n: xp.mask(n, 4),
    "masked_mean": lambda xp, x, y, i, n: xp.masked_mean(x, n),
    "masked_softmax": lambda xp, x, y, i, n: xp.masked_softmax(xp.permute_dims(x, (0, 2, 1)), n),
    "where": lambda xp, x, y, i, n: xp.where(x > y, x, 0.0),
    "logical": lambda xp, x, y, i, n: xp.logical_or(xp.logical_and(x > 0, y > 0), xp.logical_not(x > y)),
    "any and all": lambda xp, x, y, i, n: xp.any(x > 1, axis=1) & xp.all(y < 2, axis=1),
    "argmax": lambda xp, x, y, i, n: xp.argmax(x, axis=-1),
    "argmin": lambda xp, x, y, i, n: xp.argmin(x, axis=1, keepdims=True),
    "take": lambda xp, x, y, i, n: xp.take(x, i[0, ...], axis=2),
    "take_along_axis": lambda xp, x, y, i, n: xp.take_along_axis(x, i[:, :, None], axis=-1),
    "cumulative_sum": lambda xp, x, y, i, n: xp.cumulative_sum(x, axis=1),
    "clip": lambda xp, x, y, i, n: xp.clip(x, -0.5, 0.5),
    "matmul": lambda xp, x, y, i, n: xp.matmul(x, xp.matrix_transpose(y)),
    "reshape": lambda xp, x, y, i, n: xp.reshape(x, (3, -1)),
    "shapes": lambda xp, x, y, i, n: xp.squeeze(xp.expand_dims(x, axis=1), axis=1),
    "broadcast_to": lambda xp, x, y, i, n: xp.broadcast_to(x[:, :1, :], (3, 4, 5)),
    "concat": lambda xp, x, y, i, n: xp.concat([x, y], axis=-1),
    "stack": lambda xp, x, y, i, n: xp.stack([x, y], axis=1),
    "flip": lambda xp, x, y, i, n: xp.flip(x, axis=1),
    "tril": lambda xp, x, y, i, n: xp.tril(x, k=1),
    "triu": lambda xp, x, y, i, n: xp.triu(x, k=-1),
    "arange": lambda xp, x, y, i, n: xp.astype(xp.arange(4), x.dtype) * xp.ones((3, 4), dtype=x.dtype),
    "full": lambda xp, x, y, i, n: xp.full((2, 2), 3.0, dtype=x.dtype) + xp.zeros((2,), dtype=x.dtype),
    "full_like": lambda xp, x, y, i, n: xp.full_like(x, 0.5),
    "asarray": lambda xp, x, y, i, n: xp.asarray([[1, 2], [3, 4]]),
}


def arrays(dtype: str) -> tuple[Any, ...]:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 3, 4, 5)).astype(dtype)
    return x, y, rng.integers(0, 5, (3, 4)), np.array([2, 4, 0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("function", CASES.values(), ids=CASES.keys())
def test_a_function_computes_what_the_standard_says(function: Callable[..., Any], dtype: str) -> None:
    given = arrays(dtype)
    actual, expected = function(OURS, *map(Tensor, given)).asnumpy(), np.asarray(function(STANDARD, *given))
    assert (actual.dtype == expected.dtype) or {actual.dtype.kind, expected.dtype.kind} == {"i"}
    close(actual.astype(np.float64), expected.astype(np.float64), 1e-14 if dtype == "float64" else 3e-6)


def test_every_function_of_the_namespace_is_tested() -> None:
    used = " ".join(CASES) + " logical_and logical_or logical_not any all permute_dims matrix_transpose squeeze"
    used += " expand_dims astype ones zeros"
    imported = {"Any", "Tensor"}
    functions = {name for name, value in vars(namespace).items() if callable(value) and not name.startswith("_")}
    assert functions - imported - set(used.replace(",", "").split()) == set()


class Attention(unirnn.Model):
    """Attention over the valid steps, with a further method and a tied weight."""

    def __init__(self) -> None:
        self.head = unirnn.LinearSpec(6, 9, tied_to="embedding")
        self.embedding = unirnn.EmbeddingSpec(9, 6)
        self.encoder = unirnn.GRUSpec(6, 6, batch_first=True)
        self.score = unirnn.Sequential(unirnn.LinearSpec(6, 1), unirnn.ActivationSpec("tanh"))
        self.scale = 2.0

    def attend(self, h: Any, seq_length: Any) -> Any:
        xp = self.xp
        weights = xp.masked_softmax(self.scale * self.score(h)[:, :, 0], seq_length)
        return xp.matmul(weights[:, None, :], h)[:, 0, :]

    def forward(self, xp: Any, tokens: Any, seq_length: Any) -> Any:
        h, _ = self.encoder(self.embedding(tokens), seq_length=seq_length)
        scores = self.head(self.attend(h, seq_length) + xp.masked_mean(h, seq_length))
        return xp.log_softmax(scores, axis=-1)


TOKENS, LENGTHS = Tensor(np.random.default_rng(0).integers(0, 9, (3, 5))), Tensor([5, 2, 0])


def test_a_compiled_definition_computes_the_same() -> None:
    net: Any = Attention().build("mindspore", seed=0)

    def loss(tokens: Any, seq_length: Any) -> Any:
        return net(tokens, seq_length).square().sum()

    step = ms.value_and_grad(loss, None, net.trainable_params())
    one, other = (leaves({"": run(TOKENS, LENGTHS)}) for run in (step, ms.jit(step)))
    for name in one:
        close(other[name].asnumpy(), one[name].asnumpy(), 5e-6, name)
    itself = ms.grad(lambda *args: net(*args).square().sum(), None, net.trainable_params())(TOKENS, LENGTHS)
    assert len(itself) == len(net.trainable_params())


def test_a_definition_in_graph_mode() -> None:
    net: Any = Attention().build("mindspore", seed=0)
    expected = net(TOKENS, LENGTHS).asnumpy()
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        close(net(TOKENS, LENGTHS).asnumpy(), expected, 1e-6)
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)


def test_parameters_have_the_names_of_the_definition() -> None:
    spec, net = Attention(), Attention().build("mindspore", seed=0)
    assert sorted(p.name for p in net.get_parameters()) == sorted(spec.weight_shapes())
    assert isinstance(net, nn.Cell)
    assert type(net).__name__ == "Attention"
    assert unirnn.snapshot(net).spec == spec


def test_a_name_that_a_cell_has_is_refused() -> None:
    class Taken(unirnn.Model):
        def __init__(self) -> None:
            self.phase = unirnn.LinearSpec(3, 4)

        def forward(self, xp: Any, x: Any) -> Any:
            return self.phase(x)

    with pytest.raises(unirnn.errors.LimitError, match=r"mindspore: given 'phase' in Taken, which mindspore\.nn\.Cell"):
        Taken().build("mindspore")
