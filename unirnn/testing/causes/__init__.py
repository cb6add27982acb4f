"""Find the usual mistake that explains wrong results, weights or gradients.

Each hypothesis is a mistake, described in plain words, and the numbers that the oracle computes if it is made. A
mistake is named only if its numbers agree with those that were computed, and the right numbers do not.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unirnn.specs import EmbeddingSpec, RecurrentSpec, Spec
from unirnn.testing import oracle
from unirnn.testing.batches import zeroed

from .layers import layer_cause, statistics_cause
from .numbers import is_close, relative_difference, rounding
from .recurrent import recurrent_cause
from .recurrent_mistakes import reordered

__all__ = [
    "arrays_cause",
    "gradient_cause",
    "layer_cause",
    "recurrent_cause",
    "recurrent_gradient_cause",
    "statistics_cause",
    "weights_cause",
]

Array = NDArray[Any]
Arrays = Mapping[str, Array]


def weights_cause(spec: Spec, a: Arrays, b: Arrays) -> str | None:
    """Explain how two sets of weights of one spec differ: by a usual mistake in converting them, or in which arrays.

    Parameters
    ----------
    spec
        The spec of both sets of weights.
    a, b
        The weights, with the names of `Spec.weight_shapes`.

    Returns
    -------
    str or None
        A description of what turns ``a`` into ``b``; None if they are equal.

    Examples
    --------
    >>> import unirnn
    >>> spec = unirnn.LSTMSpec(3, 4)
    >>> a = unirnn.snapshot(spec.build("numpy", seed=0)).weights
    >>> print(weights_cause(spec, a, {**a, "bias_hh_l0": 0 * a["bias_hh_l0"]}))
    bias_hh_l0 is zeros
    """
    names = list(spec.weight_shapes())
    return arrays_cause(spec.leaves(), {name: a[name] for name in names}, {name: b[name] for name in names})


def arrays_cause(layers: Mapping[str, Spec], a: Arrays, b: Arrays) -> str | None:
    """Explain how two sets of weights of any model differ; see `weights_cause`.

    Parameters
    ----------
    layers
        The specs of the layers, as far as they are known, by path. The names of a layer's weights begin with its path.
    a, b
        Arrays with the same names and shapes.

    Examples
    --------
    >>> a = {"fc.weight": np.ones((2, 2)), "fc.bias": np.ones(2)}
    >>> print(arrays_cause({}, a, {**a, "fc.bias": np.zeros(2)}))
    fc.bias is zeros
    """
    wide = [{name: np.asarray(array, np.float64) for name, array in weights.items()} for weights in (a, b)]
    names = [name for name in wide[0] if not np.array_equal(wide[0][name], wide[1][name], equal_nan=True)]
    if not names:
        return None
    found = _of_recurrent_layers(layers, *wide)
    if found is None:
        found = _of_arrays(names, *wide)
    if found is not None:
        return found
    differences = {name: relative_difference(wide[1][name], wide[0][name]) for name in names}
    worst = max(names, key=lambda name: np.nan_to_num(differences[name], nan=np.inf))
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    verb = "differ" if others else "differs"
    return f"{worst}{others} {verb}, by up to {differences[worst]:.2g} of the largest value"


def _of_recurrent_layers(layers: Mapping[str, Spec], a: dict[str, Array], b: dict[str, Array]) -> str | None:
    """A mistake in one of the recurrent layers that explains all differences."""
    for path, leaf in layers.items():
        if not isinstance(leaf, RecurrentSpec):
            continue
        prefix = f"{path}." if path else ""
        own = [prefix + name for name in leaf.weight_shapes()]
        if all(name in a for name in own) and all(np.array_equal(a[name], b[name]) for name in a if name not in own):
            found = _of_one_layer(
                leaf, {n.removeprefix(prefix): a[n] for n in own}, {n.removeprefix(prefix): b[n] for n in own}
            )
            if found is not None:
                return f"{path}: {found}" if path else found
    return None


def _of_one_layer(spec: RecurrentSpec, a: dict[str, Array], b: dict[str, Array]) -> str | None:
    for order in itertools.permutations(spec.gates):
        if order != spec.gates and _same(b, {name: reordered(name, a[name], spec.gates, order) for name in a}):
            return f"the gates are in the order {', '.join(order)} instead of {', '.join(spec.gates)}"
    if spec.bias:
        changed = dict(a)
        for suffix in spec.suffixes():
            total = a[f"bias_ih{suffix}"] + a[f"bias_hh{suffix}"]
            changed |= {f"bias_ih{suffix}": total, f"bias_hh{suffix}": 0 * total}
        if _same(b, changed):
            return "the two biases are summed into bias_ih, and bias_hh is zeros"
        exchanged = {name.replace("_hh", "_xx").replace("_ih", "_hh").replace("_xx", "_ih"): a[name] for name in a}
        if _same(b, {**a, **{name: array for name, array in exchanged.items() if name.startswith("bias")}}):
            return "bias_ih and bias_hh are exchanged"
    if spec.bidirectional:
        ends = {name: name.removesuffix("_reverse") if name.endswith("_reverse") else f"{name}_reverse" for name in a}
        if _same(b, {name: a[ends[name]] for name in a}):
            return "the weights of the two directions are exchanged"
    blocks = {
        name: np.concatenate([block.T for block in np.split(array, len(spec.gates))])
        for name, array in a.items()
        if name.startswith("weight_hh") and array.shape[1] == spec.hidden_size
    }
    return "the recurrent weights are transposed, gate by gate" if _same(b, {**a, **blocks}) else None


def _same(b: dict[str, Array], changed: dict[str, Array]) -> bool:
    return all(b[name].shape == changed[name].shape and is_close(b[name], changed[name], 1e-7) for name in b)


def _of_arrays(names: Sequence[str], a: dict[str, Array], b: dict[str, Array]) -> str | None:
    """A mistake that explains every one of the differing arrays."""
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    verb = "is" if len(names) == 1 else "are"
    if not any(b[name].any() for name in names):
        return f"{shown} {verb} zeros"
    if all(
        a[name].ndim == 2 and a[name].shape == b[name].T.shape and is_close(b[name], a[name].T, 1e-7) for name in names
    ):
        return f"{shown} {verb} transposed"
    found = rounding([(b[name], a[name]) for name in names], 0.0)
    return None if found is None or "size" in found else f"{shown}: {found}"


def gradient_cause(
    found: Mapping[str, Array | None],
    expected: Arrays,
    tolerance: float,
    *,
    padding: NDArray[np.bool_] | None = None,
    spec: Spec | None = None,
) -> str | None:
    """Find the usual mistake that explains some gradients.

    Parameters
    ----------
    found, expected
        The gradients by name: ``input``, ``hx`` (or ``hx[0]``, ``h_0``, ...), and the names of weights. None stands for
        a gradient that is missing.
    tolerance
        The largest difference that is allowed, relative to the largest value of an array.
    padding
        A mask of the padding, over the two leading axes of the input.
    spec
        The spec of the layer, or None if it is not known.

    Returns
    -------
    str or None
        A description of the mistake. None if the gradients are right, if no usual mistake explains them, or if the
        right ones are NaN.

    Examples
    --------
    >>> d = np.array([[[1.0], [2.0]]])
    >>> print(gradient_cause({"input": d}, {"input": d * [[[1], [0]]]}, 1e-5, padding=np.array([[False, True]])))
    the gradient with respect to the padding of the input is not zero
    """
    wrong = [name for name in expected if not _is_right(found.get(name), expected[name], tolerance)]
    if not wrong:
        return None
    arrays = {name: found.get(name) for name in wrong}
    if padding is not None and "input" in wrong:
        own = arrays["input"]
        if own is not None and _is_right(zeroed(own, padding), expected["input"], tolerance):
            wrong_by = "NaN, instead of" if np.isnan(own).any() else "not"
            return f"the gradient with respect to the padding of the input is {wrong_by} zero"
    if any(np.isnan(expected[name]).any() for name in wrong):
        return None
    if any(array is not None and np.isnan(array).any() for array in arrays.values()):
        names = ", ".join(name for name, array in arrays.items() if array is not None and np.isnan(array).any())
        return (
            f"the gradient of {names} is NaN, as if NaN went through a mask on the way back: 0 * NaN is NaN, also in "
            "the branch that a `where` does not take"
        )
    if isinstance(spec, EmbeddingSpec) and spec.padding_idx is not None and "weight" in wrong:
        own = arrays["weight"]
        row = np.arange(spec.num_embeddings) == spec.padding_idx
        if own is not None and _is_right(zeroed(own, row), expected["weight"], tolerance):
            return "padding_idx is ignored: the gradient of its vector is not zero"
    return _of_each_gradient(arrays, expected, len(wrong) == len(expected), tolerance)


def _of_each_gradient(
    arrays: Mapping[str, Array | None], expected: Arrays, are_all: bool, tolerance: float
) -> str | None:
    """Say that gradients are missing, that they are the same multiple of the right ones, or that they are rounded."""
    missing = [name for name, array in arrays.items() if array is None or not array.any()]
    names = ", ".join(arrays)
    if len(missing) == len(arrays):
        why = ": it is cut off (detached) from the graph" if all(_is_state(name) for name in missing) else ""
        return f"the gradient of {names} is missing, or zero{why}"
    factors = {
        name: float((array * expected[name]).sum() / ((expected[name] ** 2).sum() or 1.0))
        for name, array in arrays.items()
        if array is not None and array.shape == expected[name].shape
    }
    multiples = [
        name for name, factor in factors.items() if _is_right(arrays[name], factor * expected[name], 10 * tolerance)
    ]
    if len(multiples) == len(arrays) and np.ptp(list(factors.values())) <= 20 * tolerance * max(
        abs(factor) for factor in factors.values()
    ):
        factor = factors[multiples[0]]
        if abs(factor - 2) < 100 * tolerance:
            return f"the gradient of {names} is counted twice"
        all_of_them = "all gradients are" if are_all else f"the gradient of {names} is"
        return f"{all_of_them} {factor:.4g} times the right one"
    pairs = [(array, expected[name]) for name, array in arrays.items() if array is not None]
    if len(pairs) < len(arrays) or any(array.shape != own.shape for array, own in pairs):
        return None
    return rounding(pairs, tolerance)


def recurrent_gradient_cause(
    spec: RecurrentSpec,
    arrays: Arrays,
    lengths: Array | None,
    cotangents: tuple[Array, ...],
    found: Mapping[str, Array | None],
    tolerance: float,
    resets: Array | None = None,
) -> str | None:
    """Find the usual mistake that explains some gradients of a recurrent layer.

    Parameters
    ----------
    spec, arrays, lengths, cotangents, resets
        The arguments of `unirnn.testing.oracle.gradients`.
    found
        The gradients that were computed, with the names of ``arrays``.
    tolerance
        See `gradient_cause`.

    Examples
    --------
    >>> import unirnn
    >>> from unirnn.testing import oracle
    >>> spec = unirnn.GRUSpec(3, 4)
    >>> arrays = {"input": np.ones((5, 2, 3)), "h_0": np.ones((1, 2, 4))}
    >>> arrays |= unirnn.snapshot(spec.build("numpy", dtype="float64", seed=0)).weights
    >>> cotangents = (np.ones((5, 2, 4)), np.ones((1, 2, 4)))
    >>> found = oracle.gradients(spec, arrays, np.array([3, 5]), cotangents)
    >>> cut = {**found, "h_0": 0 * found["h_0"]}
    >>> print(recurrent_gradient_cause(spec, arrays, np.array([3, 5]), cotangents, cut, 1e-5))
    the gradient of h_0 is missing, or zero: it is cut off (detached) from the graph
    """
    expected = oracle.gradients(spec, arrays, lengths, cotangents, resets)
    if all(_is_right(found.get(name), expected[name], tolerance) for name in expected):
        return None
    d_output, *d_state = cotangents
    if any(np.isnan(array).any() for array in expected.values()):
        return None
    variants = {
        "the gradient that comes from the final state is ignored": (d_output, *(0 * d for d in d_state)),
        "the gradient that comes from the output is ignored": (0 * d_output, *d_state),
    }
    for text, other in variants.items():
        wrong = oracle.gradients(spec, arrays, lengths, other, resets)
        if all(_is_right(found.get(name), wrong[name], tolerance) for name in wrong):
            return text
    input = arrays["input"]
    if lengths is None or input.ndim == 2:
        return gradient_cause(found, expected, tolerance, spec=spec)
    steps = input.shape[1 if spec.batch_first else 0]
    padding = np.arange(steps) >= np.asarray(lengths)[:, None]
    return gradient_cause(found, expected, tolerance, padding=padding if spec.batch_first else padding.T, spec=spec)


def _is_right(found: Array | None, expected: Array, tolerance: float) -> bool:
    if found is None:
        return not expected.any()
    return is_close(np.asarray(found, np.float64), np.asarray(expected, np.float64), tolerance)


def _is_state(name: str) -> bool:
    return name.startswith("hx") or name in ("h_0", "c_0")
