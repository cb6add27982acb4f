"""Snapshots without any framework: their values, stacks, state dicts, and writing them into modules."""

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import unirnn
from unirnn import (
    BatchNormSpec,
    Conv1dSpec,
    EmbeddingSpec,
    GRUSpec,
    LayerNormSpec,
    LinearSpec,
    LSTMSpec,
    PoolSpec,
    RecurrentSpec,
    RNNSpec,
    Sequential,
    Snapshot,
    Spec,
    errors,
)
from unirnn.contract import weights as _weights
from unirnn.snapshots import state_dicts
from unirnn.snapshots.stacking import stack, unstack
from unirnn.testing.strategies import models


def drawn(spec: RecurrentSpec, seed: int = 0, dtype: str = "float32") -> Snapshot:
    return Snapshot(spec, _weights.draw(spec, seed)).cast(dtype)


class TestSnapshots:
    taken = unirnn.snapshot(GRUSpec(3, 4).build("numpy", seed=0))

    def test_equal_by_value(self) -> None:
        same = Snapshot(self.taken.spec, self.taken.weights)
        assert same == self.taken
        other = dict(self.taken.weights)
        other["bias_hh_l0"] = other["bias_hh_l0"] + 1
        assert Snapshot(self.taken.spec, other) != self.taken
        assert self.taken != self.taken.spec

    def test_a_snapshot_has_the_dtype_of_its_weights(self) -> None:
        wide = unirnn.snapshot(GRUSpec(3, 4).build("numpy", dtype="float64"))
        assert wide.dtype == "float64"
        assert wide.build("numpy").weights["bias_hh_l0"].dtype == np.float64
        assert wide.build("numpy", dtype="float32").weights["bias_hh_l0"].dtype == np.float32

    def test_copies(self) -> None:
        for copied in (pickle.loads(pickle.dumps(self.taken)), copy.deepcopy(self.taken)):
            assert copied == self.taken

    def test_a_snapshot_of_an_unpickled_module(self, tmp_path: Path) -> None:
        path = tmp_path / "module.pickle"
        path.write_bytes(pickle.dumps(self.taken.build("numpy")))
        code = f"import pickle, unirnn; print(unirnn.snapshot(pickle.load(open({str(path)!r}, 'rb'))))"
        printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
        assert printed.strip() == repr(self.taken)

    def test_weights_that_do_not_fit(self) -> None:
        weights = dict(self.taken.weights)
        with pytest.raises(errors.ShapeError, match=r"weights\['weight_ih_l0'\]: given shape \(12, 3\)"):
            Snapshot(GRUSpec(5, 4), weights)
        with pytest.raises(errors.ArgumentError, match=r"weights: unknown bias_ih_l0, bias_hh_l0; GRUSpec\(3, 4, "):
            Snapshot(GRUSpec(3, 4, bias=False), weights)
        del weights["bias_hh_l0"]
        with pytest.raises(
            errors.ArgumentError, match=r"weights: missing bias_hh_l0; GRUSpec\(3, 4\) has weight_ih_l0, "
        ):
            Snapshot(GRUSpec(3, 4), weights)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_weights_in_another_byte_order_are_the_same(dtype: str) -> None:
    taken = drawn(GRUSpec(3, 4), dtype=dtype)
    swapped = {name: array.astype(array.dtype.newbyteorder()) for name, array in taken.weights.items()}
    assert Snapshot(taken.spec, swapped) == taken


def test_bfloat16_weights_are_held_in_float32() -> None:
    taken = drawn(GRUSpec(3, 4))
    narrow = {name: array.astype(ml_dtypes.bfloat16) for name, array in taken.weights.items()}
    held = Snapshot(taken.spec, narrow)
    assert held.dtype == "float32"
    for name, array in held.weights.items():
        np.testing.assert_array_equal(array, narrow[name].astype(np.float32))


def test_equality_is_bit_for_bit() -> None:
    spec = RNNSpec(1, 1, bias=False)
    nan, zero, minus = (
        Snapshot(spec, {"weight_ih_l0": np.full((1, 1), value), "weight_hh_l0": np.ones((1, 1))})
        for value in (np.nan, 0.0, -0.0)
    )
    assert nan == Snapshot(spec, nan.weights)
    assert zero != minus


def test_weights_as_lists() -> None:
    arrays = {"weight_ih_l0": [[1.0]] * 3, "weight_hh_l0": [[2.0]] * 3, "ragged": [[1.0], [2.0, 3.0]]}
    taken = unirnn.snapshot(arrays, batch_first=False)
    assert taken.spec == GRUSpec(1, 1, bias=False)


def test_cast() -> None:
    taken = drawn(LSTMSpec(3, 4), dtype="float64")
    narrow = taken.cast(np.float32)
    assert (narrow.dtype, taken.dtype) == ("float32", "float64")
    assert narrow.cast("float64").cast("float32") == narrow


@given(
    cell=st.sampled_from(["RNN", "GRU", "LSTM"]),
    num_layers=st.integers(1, 12),
    bias=st.booleans(),
    bidirectional=st.booleans(),
)
def test_unstack_and_stack_again(cell: str, num_layers: int, bias: bool, bidirectional: bool) -> None:
    arguments = {"input_size": 2, "hidden_size": 3, "bias": bias, "bidirectional": bidirectional, "batch_first": True}
    whole = drawn(RecurrentSpec.from_dict({"kind": cell, "num_layers": num_layers, **arguments}))
    layers = unstack(whole)
    assert [layer.spec.num_layers for layer in layers] == [1] * num_layers
    assert stack(layers) == whole
    if num_layers > 2:
        assert stack([stack(layers[:2]), *layers[2:]]) == whole


# ---- state dicts ---------------------------------------------------------------------------------


@given(
    cell=st.sampled_from(["GRU", "LSTM"]),
    sizes=st.tuples(st.integers(1, 6), st.integers(2, 6), st.integers(1, 12)),
    bias=st.booleans(),
    bidirectional=st.booleans(),
    projected=st.booleans(),
    prefix=st.sampled_from(["", "rnn.", "a.b.c.", "weight_ih_l0.", "x_"]),
    is_cell=st.booleans(),
)
def test_names_and_shapes_determine_the_spec(
    cell: str,
    sizes: tuple[int, int, int],
    bias: bool,
    bidirectional: bool,
    projected: bool,
    prefix: str,
    is_cell: bool,
) -> None:
    input_size, hidden_size, num_layers = sizes
    arguments = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
    if cell == "LSTM" and projected:
        arguments["proj_size"] = hidden_size - 1
    if is_cell:
        arguments, bidirectional = {"input_size": input_size, "hidden_size": hidden_size}, False
    spec = RecurrentSpec.from_dict({"kind": cell, **arguments, "bias": bias, "bidirectional": bidirectional})
    sources = {name: prefix + name.removesuffix("_l0" if is_cell else "") for name in spec.weight_shapes()}
    shapes = {sources[name]: shape for name, shape in spec.weight_shapes().items()}
    shapes |= {"heads.one.head.weight": (2, 4), "running": (), "attention.weight_ih": (4, 4)}
    assert state_dicts.find_layers(shapes) == {prefix: (spec, sources)}
    assert state_dicts.choose_layer(shapes) == (spec, sources)


LSTM = LSTMSpec(3, 4)
WEIGHTS = dict(drawn(LSTM).weights)


def state_dict(*prefixes: str, spec: RecurrentSpec = LSTMSpec(3, 4), **extra: Any) -> dict[str, Any]:  # noqa: B008 - frozen
    layers = {prefix + name: array for prefix in prefixes for name, array in drawn(spec).weights.items()}
    return {"head.bias": np.zeros(3, np.float32), **layers, **extra}


def test_a_layer_of_a_state_dict_by_its_prefix() -> None:
    weights = state_dict("encoder.lstm.", "decoder.lstm.")
    for prefix in ("encoder.lstm.", "encoder.lstm"):
        assert unirnn.snapshot(weights, prefix=prefix, batch_first=False) == drawn(LSTMSpec(3, 4))
    assert unirnn.snapshot(state_dict(""), batch_first=False) == drawn(LSTMSpec(3, 4))


def test_incomplete_layers_are_ignored() -> None:
    less = {"model.dec.weight_ih_l0": np.ones((12, 3)), "old.bias_hh_l0": np.ones(12)}
    weights = state_dict("encoder.") | less
    assert unirnn.snapshot(weights, batch_first=False) == drawn(LSTMSpec(3, 4))
    with pytest.raises(errors.SpecError, match="expected weight_ih_l0 and weight_hh_l0"):
        unirnn.snapshot(weights, prefix="model.dec.")


PARAMETRIZED = {
    "weight_norm": ["weight_hh_l0_g", "weight_hh_l0_v"],
    "spectral_norm": ["weight_hh_l0_orig", "weight_hh_l0_u", "weight_hh_l0_v"],
    "parametrizations.weight_norm": [f"parametrizations.weight_hh_l0.original{n}" for n in "01"],
    "parametrizations.spectral_norm": [
        f"parametrizations.weight_hh_l0.{name}" for name in ("original", "0._u", "0._v")
    ],
}


@pytest.mark.parametrize("parts", PARAMETRIZED.values(), ids=PARAMETRIZED.keys())
@pytest.mark.parametrize("spec", [None, LSTM])
@pytest.mark.parametrize("prefix", ["", "encoder."])
def test_a_parametrized_weight(parts: list[str], spec: RecurrentSpec | None, prefix: str) -> None:
    weights = {prefix + name: array for name, array in WEIGHTS.items() if name != "weight_hh_l0"}
    weights |= {prefix + part: np.ones((16, 4)) for part in parts}
    with pytest.raises(errors.SpecError) as caught:
        unirnn.snapshot(weights, spec=spec)
    assert str(caught.value).startswith("weights: given a parametrization of weight_hh_l0, expected the weight itself")
    assert "torch.nn.utils.parametrize.remove_parametrizations" in str(caught.value)
    # If the weight is there as well, it may be out of date.
    weights[f"{prefix}weight_hh_l0"] = WEIGHTS["weight_hh_l0"]
    with pytest.raises(errors.SpecError, match=r"^weights: given '.*' beside weight_hh_l0, so the weight may be comp"):
        unirnn.snapshot(weights, spec=spec)


RAW = {
    "the raw weight alone": {"rnn.weight_hh_l0_raw": "raw"},
    "beside the copy": {"rnn.weight_hh_l0": "dropped", "rnn.weight_hh_l0_raw": "raw"},
    "in the module around it": {"weight_hh_l0_raw": "raw", "module.weight_hh_l0": "dropped"},
    "in the module around it, without the copy": {"0.rnns.0.weight_hh_l0_raw": "raw"},
}


@pytest.mark.parametrize("weights", RAW.values(), ids=RAW.keys())
@pytest.mark.parametrize("order", [1, -1])
def test_the_raw_weight_of_weight_dropping_is_the_trained_one(weights: dict[str, str], order: int) -> None:
    kinds = {"raw": WEIGHTS["weight_hh_l0"], "dropped": WEIGHTS["weight_hh_l0"] * 0}
    (inner,) = {name.rpartition("weight_hh_l0")[0] for name in weights if name.endswith("_raw")}
    if inner != "rnn.":
        inner += "module."
    arrays = {inner + name: array for name, array in WEIGHTS.items() if name != "weight_hh_l0"}
    arrays |= {name: kinds[kind] for name, kind in weights.items()}
    arrays = dict([*arrays.items()][::order])
    assert unirnn.snapshot(arrays, batch_first=False) == drawn(LSTM)
    assert unirnn.snapshot(arrays, prefix=inner, spec=LSTM) == drawn(LSTM)
    model = Sequential(encoder=LSTM)
    taken = unirnn.snapshot(arrays, spec=model, rename={inner: "encoder."})
    assert dict(taken.weights).keys() == {f"encoder.{name}" for name in WEIGHTS}
    np.testing.assert_array_equal(taken.weights["encoder.weight_hh_l0"], kinds["raw"])


@pytest.mark.parametrize("name", ["mask", "u", "orig", "scale", "v"])
@pytest.mark.parametrize("place", ["encoder.", "encoder.module.", "encoder.parametrizations."])
def test_an_array_from_which_a_weight_may_be_computed_is_refused(name: str, place: str) -> None:
    inner = "encoder.module." if place == "encoder.module." else "encoder."
    arrays = {inner + weight: array for weight, array in WEIGHTS.items()}
    end = f"weight_hh_l0.{name}" if "parametrizations" in place else f"weight_hh_l0_{name}"
    arrays[place.replace("module.", "") + end] = np.ones((16, 4))
    words = r"beside weight_hh_l0, so the weight may be computed from it at each call; .* out of the mapping if"
    with pytest.raises(errors.SpecError, match=words):
        unirnn.snapshot(arrays, batch_first=False)
    del arrays[place.replace("module.", "") + end]
    assert unirnn.snapshot(arrays, batch_first=False) == drawn(LSTM)


CELL = {f"cell.{name.removesuffix('_l0')}": array for name, array in WEIGHTS.items()}


def test_a_cell_with_further_arrays_is_refused_without_a_spec() -> None:
    assert unirnn.snapshot({**CELL, "head.weight": np.ones((4, 4))}, batch_first=False) == drawn(LSTM)
    for name in ("cell.norm.weight", "cell.peephole"):
        arrays = {**CELL, name: np.ones(4), "cell.step": np.array(3)}
        with pytest.raises(errors.SpecError, match=f"beside those of a cell there are '{name}', so it may compute"):
            unirnn.snapshot(arrays, batch_first=False)
        assert unirnn.snapshot(arrays, spec=LSTM) == drawn(LSTM)


def test_a_layer_with_further_arrays_is_refused_without_a_spec() -> None:
    for name in ("rnn.norm.weight", "rnn.h_0"):
        arrays = {**state_dict("rnn."), name: np.ones(4)}
        with pytest.raises(errors.SpecError, match=f"beside those of a layer there are '{name}', so it may compute"):
            unirnn.snapshot(arrays, batch_first=False)
        assert unirnn.snapshot(arrays, spec=LSTM) == drawn(LSTM)


# ---- whether the batch comes first ---------------------------------------------------------------


def test_a_state_dict_does_not_say_whether_the_batch_comes_first() -> None:
    with pytest.warns(errors.AssumptionWarning, match="batch_first: a state dict does not say it") as caught:
        taken = unirnn.snapshot(state_dict("rnn."))
    assert [warning.filename for warning in caught] == [__file__]
    assert (taken, taken.assumed) == (drawn(LSTM), ("batch_first",))
    shown = "<snapshot of LSTMSpec(3, 4), 144 numbers, float32, batch_first unknown>"
    assert repr(taken) == repr(copy.deepcopy(taken)) == shown
    assert taken.cast("float16").assumed == unirnn.stack([taken]).assumed == unstack(taken)[0].assumed == taken.assumed
    for known in (
        unirnn.snapshot(state_dict("rnn."), batch_first=False),
        unirnn.snapshot(state_dict("rnn."), spec=LSTM),
        unirnn.snapshot(taken.build("numpy")),
    ):
        assert (known, known.assumed) == (drawn(LSTM), ())
    first = LSTMSpec(3, 4, batch_first=True)
    assert unirnn.snapshot(state_dict("rnn."), batch_first=True) == Snapshot(first, WEIGHTS)
    assert unirnn.snapshot(state_dict("rnn."), batch_first=True, spec=first) == Snapshot(first, WEIGHTS)


def test_a_file_may_not_say_whether_the_batch_comes_first(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **state_dict("rnn."))
    with pytest.warns(errors.AssumptionWarning) as caught:
        taken = unirnn.load(tmp_path / "a.npz")
    assert [warning.filename for warning in caught] == [__file__]
    assert taken.assumed == unirnn.files.contents(tmp_path / "a.npz").layers["rnn."].assumed == ("batch_first",)
    taken.save(tmp_path / "b.npz")
    assert unirnn.load(tmp_path / "b.npz", batch_first=False).assumed == ()
    with pytest.raises(errors.ArgumentError, match=r"b.npz: batch_first: given True, but the file says False: LSTMSp"):
        unirnn.load(tmp_path / "b.npz", batch_first=True)
    assert unirnn.load(tmp_path / "a.npz", batch_first=True).spec == LSTMSpec(3, 4, batch_first=True)


# ---- a stack out of several ----------------------------------------------------------------------


STACK = GRUSpec(3, 4, 3, bidirectional=True)


def spread(names: list[str], spec: RecurrentSpec = STACK) -> dict[str, Any]:
    """The state dict of a stack, with a prefix for each layer."""
    return {
        prefix + name: array
        for prefix, layer in zip(names, unstack(drawn(spec)), strict=True)
        for name, array in layer.weights.items()
    }


PREFIXES = {
    "DeepSpeech": ["module.rnns.0.rnn.", "module.rnns.1.rnn.", "module.rnns.2.rnn."],
    "by number": ["rnn.0.", "rnn.5.", "rnn.10."],
    "by name": ["bottom.", "middle.", "encoder.top."],
    "one in the other": ["", "up.", "up.up."],
}


@pytest.mark.parametrize("names", PREFIXES.values(), ids=PREFIXES.keys())
@pytest.mark.parametrize("is_sorted", [False, True])
def test_a_list_of_prefixes_is_a_stack(names: list[str], is_sorted: bool) -> None:
    arrays = {"embedding.weight": np.ones((9, 3)), **spread(names), "head.weight": np.ones((8, 2))}
    arrays = dict(sorted(arrays.items())) if is_sorted else arrays
    if not (is_sorted and names[0] == "bottom."):
        assert unirnn.snapshot(arrays, prefix=names, batch_first=False) == drawn(STACK)
        assert unirnn.snapshot(arrays, prefix=tuple(names), spec=STACK) == drawn(STACK)
    given = RNNSpec(3, 4, 3, nonlinearity="relu", batch_first=True, dropout=0.5)
    assert unirnn.snapshot(spread(names, given), prefix=names, spec=given) == drawn(given)
    assert unirnn.snapshot(arrays, prefix=names[:1], batch_first=False) == unstack(drawn(STACK))[0]


@pytest.mark.parametrize(
    ("names", "between"),
    [
        (PREFIXES["DeepSpeech"], "module.rnns.1.batch_norm.weight"),
        (PREFIXES["DeepSpeech"], "module.rnns.2.embedding.weight"),
        (PREFIXES["by number"], "rnn.7.weight"),
        (PREFIXES["by name"], "norm.weight"),
    ],
)
@pytest.mark.parametrize("place", ["between", "last", "first"])
def test_arrays_between_the_layers_of_a_stack(names: list[str], between: str, place: str) -> None:
    if names is PREFIXES["by name"] and place != "between":
        pytest.skip("only an array between layers is recognised by these names")
    items = [*spread(names).items()]
    position = {"between": 16, "last": len(items), "first": 0}[place]
    arrays = dict([*items[:position], (between, np.ones(8)), *items[position:]])
    with pytest.raises(errors.ArgumentError, match=f"prefix: besides the layers of the stack there are '{between}', "):
        unirnn.snapshot(arrays, prefix=names, batch_first=False)
    layers = [unirnn.snapshot(arrays, prefix=name, batch_first=False) for name in names]
    assert unirnn.stack(layers) == drawn(STACK)


def test_summed_directions_are_a_model() -> None:
    """The remedy in the error message works, for the first and the second layer of DeepSpeech2."""
    layers = [drawn(LSTMSpec(size, 4, bidirectional=True)) for size in (3, 4)]
    arrays = {f"rnns.{k}.rnn.{name}": array for k in (0, 1) for name, array in layers[k].weights.items()}
    with pytest.raises(errors.SpecError) as caught:
        unirnn.snapshot(arrays, prefix=["rnns.0.rnn.", "rnns.1.rnn."], batch_first=False)
    advice = str(caught.value).partition("read the state dict with ")[2].partition(", without")[0]
    spec, rename = advice.removeprefix("spec=").split(" and rename=")
    taken = unirnn.snapshot(arrays, spec=eval(spec, vars(unirnn)), rename=eval(rename))
    x = np.ones((5, 2, 3), np.float32)
    expected = x
    for layer in layers:
        output = layer.build("numpy")(expected)[0]
        expected = output[..., :4] + output[..., 4:]
    np.testing.assert_allclose(taken.build("numpy")(x), expected, rtol=1e-6)


def test_a_list_of_snapshots_and_state_dicts() -> None:
    parts = [dict(layer.weights) for layer in unstack(drawn(STACK))]
    assert unirnn.snapshot(unstack(drawn(STACK))) == drawn(STACK)
    assert unirnn.snapshot(parts, batch_first=False) == drawn(STACK)
    with pytest.warns(errors.AssumptionWarning) as caught:
        unirnn.snapshot(parts)
    assert len(caught) == 1


def test_a_spec_adds_what_names_and_shapes_do_not_say() -> None:
    for spec in (RNNSpec(3, 4, nonlinearity="relu"), GRUSpec(3, 4, reset_after=False, batch_first=True)):
        assert unirnn.snapshot(state_dict("rnn.", spec=spec), spec=spec).spec == spec


Mistake = tuple[Callable[[], Any], type[errors.UnirnnError], str]
TAKING: dict[str, Mistake] = {
    "nothing": (
        lambda: unirnn.snapshot({}),
        errors.ArgumentError,
        "weights: given no recurrent layer, expected names such as 'weight_ih_l0'",
    ),
    "a path": (
        lambda: unirnn.snapshot("encoder.safetensors"),
        errors.ArgumentError,
        "obj: given builtins.str, expected an object; unirnn.load(path) reads a file",
    ),
    "a path that is an object": (
        lambda: unirnn.snapshot(Path("encoder.safetensors")),
        errors.ArgumentError,
        f"obj: given {Path.__module__}.PosixPath, expected an object; unirnn.load(path) reads a file",
    ),
    "the name of a cell for a spec": (
        lambda: unirnn.snapshot(WEIGHTS, spec="LSTM"),  # type: ignore[arg-type]
        errors.ArgumentError,
        "spec, prefix: given 'LSTM', None, expected a spec such as GRUSpec(3, 4), and a str",
    ),
    "no snapshot": (
        lambda: unirnn.load_weights(LSTM.build("numpy"), WEIGHTS),  # type: ignore[arg-type]
        errors.ArgumentError,
        "snapshot: given dict, expected one that unirnn.snapshot took",
    ),
    "a snapshot of nothing": (
        lambda: Snapshot(LSTM, None),  # type: ignore[arg-type]
        errors.ArgumentError,
        "spec, weights: given LSTMSpec, NoneType, expected a spec and a mapping of names to arrays",
    ),
    "a seed that is none": (
        lambda: drawn(LSTM).build("numpy", seed=-1),
        errors.SpecError,
        "seed: given -1, expected a non-negative integer",
    ),
    "a build that overflows": (
        lambda: Snapshot(LSTM, {name: array * 1e6 for name, array in WEIGHTS.items()}).build("numpy", dtype="float16"),
        errors.DTypeError,
        "dtype: given float16, which can't hold weight_ih_l0: it reaches 4.",
    ),
    "something else": (
        lambda: unirnn.snapshot(3.0),
        errors.ArgumentError,
        "obj: given builtins.float, expected a module that unirnn built, a recurrent layer of torch, mindspore, keras "
        "or flax, an ONNX model, a mapping of names to arrays, or a list of layers",
    ),
    "an empty list": (
        lambda: unirnn.snapshot([]),
        errors.SpecError,
        "layers: given none, expected at least one",
    ),
    "a spec besides a module": (
        lambda: unirnn.snapshot(LSTM.build("numpy"), spec=LSTM),
        errors.ArgumentError,
        "spec: given with a module, whose spec and names are known; leave it out",
    ),
    "a prefix besides a module": (
        lambda: unirnn.snapshot([LSTM.build("numpy")], prefix="lstm."),
        errors.ArgumentError,
        "prefix: given with a module, whose spec and names are known; leave it out",
    ),
    "several layers and no prefix": (
        lambda: unirnn.snapshot(state_dict("b.", "a.")),
        errors.ArgumentError,
        "prefix: given none, but there are several layers; give one of 'b.', 'a.'",
    ),
    "a prefix that is not there": (
        lambda: unirnn.snapshot(state_dict("b.", "a."), prefix="c."),
        errors.ArgumentError,
        "prefix: given 'c.', expected one of 'b.', 'a.'",
    ),
    "no prefixes": (
        lambda: unirnn.snapshot(state_dict("a."), prefix=[]),
        errors.ArgumentError,
        "prefix: given [], expected a str, or a list of them, the lowest layer first",
    ),
    "one prefix twice": (
        lambda: unirnn.snapshot(state_dict("a.", spec=LSTMSpec(4, 4)), prefix=["a.", "a"]),
        errors.ArgumentError,
        "prefix: given ['a.', 'a.'], expected each layer once",
    ),
    "prefixes with a model": (
        lambda: unirnn.snapshot(state_dict("a."), prefix=["a.", "b."], spec=Sequential(a=LSTM)),
        errors.ArgumentError,
        "prefix: given a list with Sequential(a=LSTMSpec(3, 4)), expected a recurrent layer, or one prefix",
    ),
    "a damaged part of a stack": (
        lambda: unirnn.snapshot(state_dict("a.") | {"b.weight_ih_l0": np.ones((8, 3))}, prefix=["a.", "b."]),
        errors.SpecError,
        "prefix 'b.': weights: given weight_ih_l0 (8, 3); expected weight_ih_l0 and weight_hh_l0",
    ),
    "parts of RNNs": (
        lambda: unirnn.snapshot(spread(["a.", "b."], RNNSpec(3, 4, 2)), prefix=["a.", "b."], batch_first=True),
        errors.SpecError,
        "weights: they are those of RNNSpec(3, 4, num_layers=2, batch_first=True), but whether it is tanh or relu",
    ),
    "a stack with another spec": (
        lambda: unirnn.snapshot(spread(["a.", "b."], LSTMSpec(3, 4, 2)), prefix=["a.", "b."], spec=LSTMSpec(3, 4, 3)),
        errors.SpecError,
        "spec: given LSTMSpec(3, 4, num_layers=3), but the layers under 'a.', 'b.' are LSTMSpec(3, 4, num_layers=2)",
    ),
    "a stack of no snapshots": (
        lambda: unirnn.stack([LSTM.build("numpy")]),
        errors.ArgumentError,
        "layers[0]: given NumpyModule, expected a snapshot; unirnn.snapshot takes a list of layers as a stack",
    ),
    "something else in a list": (
        lambda: unirnn.snapshot([LSTM.build("numpy"), len, LSTMSpec(4, 4).build("numpy"), 3.0]),
        errors.SpecError,
        "layers: given 1: builtins.builtin_function_or_method, 3: builtins.float, which a stack would leave out",
    ),
    "batch_first of another kind": (
        lambda: unirnn.snapshot(WEIGHTS, batch_first=1),  # type: ignore[arg-type]
        errors.ArgumentError,
        "batch_first: given 1, expected True or False",
    ),
    "batch_first against the spec": (
        lambda: unirnn.snapshot(WEIGHTS, spec=LSTM, batch_first=True),
        errors.ArgumentError,
        "batch_first: given True, but the spec says False: LSTMSpec(3, 4); give one of them",
    ),
    "batch_first against the module": (
        lambda: unirnn.snapshot(LSTM.build("numpy"), batch_first=True),
        errors.ArgumentError,
        "batch_first: given True, but the module says False: LSTMSpec(3, 4); give one of them",
    ),
    "batch_first of what has no steps": (
        lambda: unirnn.snapshot(WEIGHTS, spec=LinearSpec(3, 4), batch_first=True),
        errors.ArgumentError,
        "batch_first: given True with LinearSpec(3, 4), which has none; leave it out",
    ),
    "two arrays for one weight": (
        lambda: unirnn.snapshot({**CELL, **{f"cell.{n}": a for n, a in WEIGHTS.items()}}, batch_first=True),
        errors.SpecError,
        "weights: given 'cell.weight_ih_l0' beside weight_ih_l0, ",
    ),
    "an RNN, which may be tanh or relu": (
        lambda: unirnn.snapshot(state_dict("", spec=RNNSpec(3, 4))),
        errors.SpecError,
        "weights: they are those of RNNSpec(3, 4), but whether it is tanh or relu does not follow from names and "
        "shapes; give as spec RNNSpec(3, 4) or RNNSpec(3, 4, nonlinearity='relu')",
    ),
    "a weight of a deep stack too few": (
        lambda: unirnn.snapshot(state_dict("", spec=LSTMSpec(3, 4, 64)) | {"weight_ih_l64": np.ones((16, 4))}),
        errors.ArgumentError,
        "weights: missing weight_hh_l64, bias_ih_l64, bias_hh_l64; LSTMSpec(3, 4, num_layers=65) has weight_ih_l0, "
        "weight_hh_l0, bias_ih_l0, bias_hh_l0, weight_ih_l1, weight_hh_l1, bias_ih_l1, bias_hh_l1 and 252 more",
    ),
    "many layers and no prefix": (
        lambda: unirnn.snapshot(state_dict(*(f"{n}." for n in range(64)))),
        errors.ArgumentError,
        "prefix: given none, but there are several layers; give one of '0.', '1.', '2.', '3.', '4.', '5.', '6.', '7.' "
        "and 56 more",
    ),
    "two layers, one of which is damaged": (
        lambda: unirnn.snapshot(state_dict("a.") | {"b.weight_ih_l0": np.ones(3), "b.weight_hh_l0": np.ones(3)}),
        errors.ArgumentError,
        "prefix: given none, but there are several layers; give one of 'a.', 'b.'",
    ),
    "a weight too few": (
        lambda: unirnn.snapshot({name: array for name, array in WEIGHTS.items() if name != "bias_hh_l0"}),
        errors.ArgumentError,
        "weights: missing bias_hh_l0; LSTMSpec(3, 4) has weight_ih_l0, ",
    ),
    "a layer left out": (
        lambda: unirnn.snapshot({**WEIGHTS, **{n.replace("l0", "l2"): a for n, a in WEIGHTS.items()}}),
        errors.ArgumentError,
        "weights: missing weight_ih_l1, weight_hh_l1, bias_ih_l1, bias_hh_l1; unknown weight_ih_l2,",
    ),
    "no weight of the state": (
        lambda: unirnn.snapshot({"weight_ih_l0": np.ones((4, 3))}),
        errors.SpecError,
        "weights: given weight_ih_l0 (4, 3); expected weight_ih_l0 and weight_hh_l0 of two axes",
    ),
    "twice as many rows": (
        lambda: unirnn.snapshot({"weight_ih_l0": np.ones((8, 3)), "weight_hh_l0": np.ones((8, 4))}),
        errors.SpecError,
        "weights: weight_hh_l0 has 8 rows for a hidden size of 4; expected as many (RNN), 3 times (GRU) or 4 times",
    ),
    "no hidden size": (
        lambda: unirnn.snapshot({"weight_ih_l0": np.ones((0, 3)), "weight_hh_l0": np.ones((0, 0))}),
        errors.SpecError,
        "weights: weight_hh_l0 has 0 rows for a hidden size of 0",
    ),
    "no input": (
        lambda: unirnn.snapshot({"weight_ih_l0": np.ones((12, 0)), "weight_hh_l0": np.ones((12, 4))}),
        errors.SpecError,
        "input_size: given 0, expected at least 1",
    ),
    "a bias of another shape": (
        lambda: unirnn.snapshot({**WEIGHTS, "bias_hh_l0": np.ones(15)}),
        errors.ShapeError,
        "weights['bias_hh_l0']: given shape (15,), expected (16,)",
    ),
    "another spec": (
        lambda: unirnn.snapshot(WEIGHTS, spec=LSTMSpec(3, 5)),
        errors.ShapeError,
        "weights['weight_ih_l0']: given shape (16, 3), expected (20, 3)",
    ),
    "weights of integers": (
        lambda: unirnn.snapshot({name: array.astype(int) for name, array in WEIGHTS.items()}),
        errors.DTypeError,
        "weights['weight_ih_l0']: given dtype int64, expected float16, float32 or float64",
    ),
    "a cast to what NumPy lacks": (
        lambda: drawn(LSTM).cast("bfloat16"),
        errors.DTypeError,
        "dtype: given bfloat16, expected float16, float32 or float64, since NumPy has no other; give dtype='bfloat16'",
    ),
    "a cast that overflows": (
        lambda: Snapshot(LSTM, {name: array * 1e6 for name, array in WEIGHTS.items()}).cast("float16"),
        errors.DTypeError,
        "dtype: given float16, which can't hold weight_ih_l0: it reaches 4.",
    ),
    "layers that don't fit": (
        lambda: stack([drawn(LSTM), drawn(LSTM)]),
        errors.SpecError,
        "layers[1]: given LSTMSpec(3, 4), expected one on LSTMSpec(3, 4), whose output has size 4",
    ),
    "layers of two kinds": (
        lambda: stack([drawn(LSTM), drawn(GRUSpec(4, 4))]),
        errors.SpecError,
        "layers[1]: given GRUSpec(4, 4), expected one on LSTMSpec(3, 4)",
    ),
}


@pytest.mark.parametrize(("call", "kind", "words"), TAKING.values(), ids=TAKING.keys())
def test_mistakes_in_taking_a_snapshot(call: Callable[[], Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value).startswith(words)


# ---- writing into a module -----------------------------------------------------------------------


def test_load_weights_that_fit_exactly() -> None:
    whole = drawn(GRUSpec(3, 4))
    zeros = Snapshot(whole.spec, {n: np.zeros_like(a) if "bias" in n else a for n, a in whole.weights.items()})
    without = Snapshot(GRUSpec(3, 4, bias=False), {n: a for n, a in whole.weights.items() if "bias" not in n})
    with_biases, bias_free = (GRUSpec(3, 4, bias=bias).build("numpy", seed=1) for bias in (True, False))
    unirnn.load_weights(with_biases, without)
    assert unirnn.snapshot(with_biases) == zeros
    unirnn.load_weights(bias_free, zeros)
    assert unirnn.snapshot(bias_free) == without
    unirnn.load_weights(with_biases, whole.cast("float64"))  # each number is exact in float32
    assert unirnn.snapshot(with_biases) == whole
    unknown = Snapshot(whole.spec, {n: np.full_like(a, np.nan) for n, a in whole.weights.items()})
    unirnn.load_weights(with_biases, unknown)
    assert unirnn.snapshot(with_biases) == unknown
    other = GRUSpec(3, 4, batch_first=True).build("numpy", seed=1)
    unirnn.load_weights(other, whole)
    assert unirnn.snapshot(other) == Snapshot(other.spec, whole.weights)


def test_one_module_cannot_hold_two_layers() -> None:
    module = GRUSpec(4, 4).build("numpy", seed=1)
    before = unirnn.snapshot(module)
    with pytest.raises(errors.ArgumentError, match="module: it shares a weight between layers or directions"):
        unirnn.load_weights([module, module], drawn(GRUSpec(4, 4, 2)))
    assert unirnn.snapshot(module) == before
    unirnn.load_weights([module, module], stack([drawn(GRUSpec(4, 4))] * 2))
    assert unirnn.snapshot(module) == drawn(GRUSpec(4, 4))


def test_a_list_of_modules_holds_a_stack() -> None:
    modules = [GRUSpec(3, 4).build("numpy", seed=1), GRUSpec(4, 4, 2).build("numpy", seed=2)]
    taken = drawn(GRUSpec(3, 4, 3))
    unirnn.load_weights(modules, taken)
    assert unirnn.snapshot(modules) == taken


def test_an_error_while_loading_weights_does_not_change_a_list() -> None:
    modules = [GRUSpec(n, 4).build("numpy", seed=n) for n in (3, 4)]
    before = unirnn.snapshot(modules)
    modules[1].weights["weight_ih_l0"].setflags(write=False)
    with pytest.raises(errors.ArgumentError, match="is read-only, expected an array that can be written"):
        unirnn.load_weights(modules, drawn(GRUSpec(3, 4, 2)))
    assert unirnn.snapshot(modules) == before


WRITING: dict[str, tuple[RecurrentSpec, Snapshot, type[errors.UnirnnError], str]] = {
    "biases that would be lost": (
        GRUSpec(3, 4, bias=False),
        drawn(GRUSpec(3, 4)),
        errors.ArgumentError,
        "module: it has no biases, so that the snapshot's would be lost; they reach 0.485",
    ),
    "a layer less": (
        GRUSpec(3, 4, 2),
        drawn(GRUSpec(3, 4)),
        errors.ArgumentError,
        "weights: missing weight_ih_l1, ",
    ),
    "other shapes": (
        GRUSpec(3, 5),
        drawn(GRUSpec(3, 4)),
        errors.ShapeError,
        "weights['weight_ih_l0']: given shape (12, 3), expected (15, 3)",
    ),
    "another computation, RNN": (
        RNNSpec(3, 4),
        drawn(RNNSpec(3, 4, nonlinearity="relu")),
        errors.SpecError,
        "snapshot: given RNNSpec(3, 4, nonlinearity='relu'), expected the module's RNNSpec(3, 4)",
    ),
    "another computation, GRU": (
        GRUSpec(3, 4),
        drawn(GRUSpec(3, 4, reset_after=False)),
        errors.SpecError,
        "snapshot: given GRUSpec(3, 4, reset_after=False), expected the module's GRUSpec(3, 4)",
    ),
    "more digits": (
        GRUSpec(3, 4),
        drawn(GRUSpec(3, 4), dtype="float64"),
        errors.DTypeError,
        "module: it is of float32, which can't hold weight_ih_l0 without rounding; snapshot.cast('float32') rounds",
    ),
}


@pytest.mark.parametrize(("spec", "taken", "kind", "words"), WRITING.values(), ids=WRITING.keys())
def test_mistakes_in_loading_weights_change_nothing(
    spec: RecurrentSpec, taken: Snapshot, kind: type[Exception], words: str
) -> None:
    module = spec.build("numpy", seed=1)
    before = unirnn.snapshot(module)
    with pytest.raises(kind) as caught:
        unirnn.load_weights(module, taken)
    assert str(caught.value).startswith(words)
    assert unirnn.snapshot(module) == before


# ---- models --------------------------------------------------------------------------------------

MODEL = Sequential(
    embedding=EmbeddingSpec(9, 4),
    encoder=LSTMSpec(4, 4, batch_first=True),
    norm=BatchNormSpec(4),
    conv=Conv1dSpec(4, 4, 3, padding="causal"),
    head=LinearSpec(4, 9, tied_to="embedding"),
)
TRAINED = Snapshot(MODEL, _weights.draw(MODEL, 0)).cast("float32")


def model_dict(**changed: Any) -> dict[str, Any]:
    """The model's state dict in torch, under other names and with an additional layer."""
    names = {"embedding.": "emb.", "encoder.": "lstm.", "norm.": "bn."}
    arrays = {}
    for name, array in TRAINED.weights.items():
        layer = name[: name.index(".") + 1]
        arrays[names.get(layer, layer) + name.removeprefix(layer)] = array
    arrays |= {"bn.num_batches_tracked": np.array(3), "head.weight": TRAINED.weights["embedding.weight"]}
    return {name: array for name, array in {**arrays, **changed}.items() if array is not None}


RENAME: dict[str, str | None] = {"emb.": "embedding.", "lstm.": "encoder.", "bn.": "norm."}


@given(models())
def test_a_snapshot_of_a_model(model: Sequential) -> None:
    net = model.build("numpy", seed=0)
    taken = unirnn.snapshot(net)
    assert taken.spec == model
    assert taken == Snapshot(model, _weights.draw(model, 0)).cast("float32")
    assert unirnn.snapshot(dict(taken.weights), spec=model) == taken
    other = model.build("numpy", seed=1)
    unirnn.load_weights(other, taken)
    assert unirnn.snapshot(other) == unirnn.snapshot(taken.build("numpy")) == taken


@pytest.mark.parametrize("spec", [LinearSpec(3, 4), Conv1dSpec(3, 4, 3), BatchNormSpec(3), PoolSpec("mean")], ids=repr)
def test_a_snapshot_of_a_single_layer(spec: Spec) -> None:
    taken = unirnn.snapshot(spec.build("numpy", seed=0))
    assert taken.spec == spec
    other = spec.build("numpy", seed=1)
    unirnn.load_weights(other, taken)
    assert unirnn.snapshot(other) == unirnn.snapshot(dict(taken.weights), spec=spec) == taken


def test_the_model_of_a_state_dict() -> None:
    assert unirnn.snapshot(model_dict(), spec=MODEL, rename=RENAME) == TRAINED
    # A shared array may occur only once, under either name.
    assert unirnn.snapshot(model_dict(**{"head.weight": None}), spec=MODEL, rename=RENAME) == TRAINED
    others = {old: new for old, new in RENAME.items() if old != "emb."}
    assert unirnn.snapshot(model_dict(**{"emb.weight": None}), spec=MODEL, rename=others) == TRAINED
    # The longest prefix wins, and None leaves arrays out.
    more = {**RENAME, "": "no.", "bn.num": "bn.num", "conv.": "conv.", "head.": "head.", "head.aux.": None}
    assert unirnn.snapshot(model_dict(**{"head.aux.weight": np.ones(3)}), spec=MODEL, rename=more) == TRAINED
    # With a prefix, arrays outside of it are ignored.
    for prefix in ("net.model.", "net.model"):
        arrays = {f"net.model.{name}": array for name, array in model_dict().items()} | {"optimizer": np.ones(3)}
        assert unirnn.snapshot(arrays, spec=MODEL, prefix=prefix, rename=RENAME) == TRAINED


def test_the_names_of_mindspore() -> None:
    arrays = {
        name.replace("norm.weight", "norm.gamma")
        .replace("norm.bias", "norm.beta")
        .replace("running_mean", "moving_mean")
        .replace("running_var", "moving_variance")
        .replace("embedding.weight", "embedding.embedding_table"): array
        for name, array in TRAINED.weights.items()
    }
    arrays["conv.weight"] = arrays["conv.weight"][:, :, None]
    assert unirnn.snapshot(arrays, spec=MODEL) == TRAINED
    gamma = {"gamma": np.ones(3), "beta": np.zeros(3)}
    assert unirnn.snapshot(gamma, spec=LayerNormSpec(3)) == Snapshot(
        LayerNormSpec(3), {"weight": gamma["gamma"], "bias": gamma["beta"]}
    )


MODELS: dict[str, Mistake] = {
    "other names": (
        lambda: unirnn.snapshot(model_dict(**{"aux.weight": np.ones(3)}), spec=MODEL),
        errors.ArgumentError,
        "weights: missing encoder.weight_ih_l0, encoder.weight_hh_l0, encoder.bias_ih_l0, encoder.bias_hh_l0, "
        "norm.weight, norm.bias, norm.running_mean, norm.running_var; left over emb.weight, lstm.weight_ih_l0, "
        "lstm.weight_hh_l0, lstm.bias_ih_l0, lstm.bias_hh_l0, bn.weight, bn.bias, bn.running_mean and 2 more; perhaps "
        "rename={'lstm.': 'encoder.', 'bn.': 'norm.'}; the spec has embedding.weight, encoder.weight_ih_l0, ",
    ),
    "arrays left over": (
        lambda: unirnn.snapshot(model_dict(**{"aux.weight": np.ones(3)}), spec=MODEL, rename=RENAME),
        errors.ArgumentError,
        "weights: left over aux.weight; rename={'aux.weight': None} leaves them out; the spec has embedding.weight, ",
    ),
    "renamed to a name that is not there": (
        lambda: unirnn.snapshot(model_dict(), spec=MODEL, rename={**RENAME, "lstm.": "rnn."}),
        errors.ArgumentError,
        "weights: missing encoder.weight_ih_l0, encoder.weight_hh_l0, encoder.bias_ih_l0, encoder.bias_hh_l0; left "
        "over lstm.weight_ih_l0, lstm.weight_hh_l0, lstm.bias_ih_l0, lstm.bias_hh_l0; perhaps "
        "rename={'lstm.': 'encoder.'}; the spec has ",
    ),
    "a typing error": (
        lambda: unirnn.snapshot({"weigth": np.ones((4, 3)), "bias": np.ones(4)}, spec=LinearSpec(3, 4)),
        errors.ArgumentError,
        "weights: missing weight; left over weigth; perhaps rename={'weigth': 'weight'}; the spec has weight, bias",
    ),
    "nothing": (
        lambda: unirnn.snapshot({}, spec=LinearSpec(3, 4)),
        errors.ArgumentError,
        "weights: missing weight, bias; the spec has weight, bias",
    ),
    "arrays of a layer without weights": (
        lambda: unirnn.snapshot({"weight": np.ones(3)}, spec=PoolSpec("mean")),
        errors.ArgumentError,
        "weights: left over weight; rename={'weight': None} leaves them out; the spec has no weights",
    ),
    "tied weights that differ": (
        lambda: unirnn.snapshot(model_dict(**{"head.weight": np.ones((9, 4))}), spec=MODEL, rename=RENAME),
        errors.ArgumentError,
        "weights: 'head.weight' and 'emb.weight' differ, but the spec ties them",
    ),
    "another shape": (
        lambda: unirnn.snapshot({"w.weight": np.ones((4, 5)), "w.bias": np.ones(4)}, spec=LinearSpec(3, 4), prefix="w"),
        errors.ShapeError,
        "weights['w.weight']: given shape (4, 5), expected (4, 3)",
    ),
    "integers": (
        lambda: unirnn.snapshot({"weight": np.ones((4, 3), int), "bias": np.ones(4)}, spec=LinearSpec(3, 4)),
        errors.DTypeError,
        "weights['weight']: given dtype int64, expected float16, float32 or float64",
    ),
    "a parametrization": (
        lambda: unirnn.snapshot(
            {"a.weight_g": np.ones((4, 1)), "a.weight_v": np.ones((4, 3)), "a.bias": np.ones(4)},
            spec=Sequential(a=LinearSpec(3, 4)),
        ),
        errors.SpecError,
        "weights: given a parametrization of a.weight, expected the weight itself; remove it first by ",
    ),
    "a parametrization of another kind": (
        lambda: unirnn.snapshot(
            {"parametrizations.weight.original0": np.ones((4, 1)), "bias": np.ones(4)}, spec=LinearSpec(3, 4)
        ),
        errors.SpecError,
        "weights: given a parametrization of weight, expected the weight itself; remove it first by ",
    ),
    "two arrays under one name": (
        lambda: unirnn.snapshot(model_dict(), spec=MODEL, rename={**RENAME, "conv.": "norm."}),
        errors.ArgumentError,
        "rename: 'bn.weight' and 'conv.weight' are both 'norm.weight' then, expected one of them",
    ),
    "a prefix that is not there": (
        lambda: unirnn.snapshot(model_dict(), spec=MODEL, prefix="net."),
        errors.ArgumentError,
        "prefix: given 'net.', expected the beginning of a name; given 'emb.weight', 'lstm.weight_ih_l0', ",
    ),
    "names without a spec": (
        lambda: unirnn.snapshot(model_dict(), rename=RENAME),
        errors.ArgumentError,
        "rename: given without a spec, expected a model as spec; a recurrent layer is chosen by prefix",
    ),
    "names for a recurrent layer": (
        lambda: unirnn.snapshot(model_dict(), spec=LSTM, rename=RENAME),
        errors.ArgumentError,
        "rename: given with LSTMSpec(3, 4), expected a model as spec",
    ),
    "the beginning of no name": (
        lambda: unirnn.snapshot(model_dict(), spec=MODEL, rename={**RENAME, "head_": None}),
        errors.ArgumentError,
        "rename: given 'head_', expected the beginning of a name; given 'emb.weight', 'lstm.weight_ih_l0', ",
    ),
    "the beginning of a name that has a prefix": (
        lambda: unirnn.snapshot({"net.fc.weight": np.ones(3)}, spec=MODEL, prefix="net", rename={"net.fc.": "head."}),
        errors.ArgumentError,
        "rename: given 'net.fc.', expected the beginning of a name without the prefix 'net.'; given 'fc.weight'",
    ),
    "names that are none": (
        lambda: unirnn.snapshot(model_dict(), spec=MODEL, rename={"a": 1}),  # type: ignore[dict-item]
        errors.ArgumentError,
        "rename: given {'a': 1}, expected new beginnings of names by the old ones",
    ),
    "names for a module": (
        lambda: unirnn.snapshot(LSTM.build("numpy"), spec=MODEL, rename=RENAME),
        errors.ArgumentError,
        "rename: given with a module, whose spec and names are known; leave it out",
    ),
    "a size that is not known": (
        lambda: unirnn.snapshot({}, spec=LinearSpec(out_features=3)),
        errors.SpecError,
        "Linear: in_features was left out, expected a number",
    ),
    "a model in a list of layers": (
        lambda: unirnn.snapshot([MODEL.build("numpy"), LSTM.build("numpy")]),
        errors.SpecError,
        "layers[0]: given Sequential(",
    ),
    "the weights of a model for a layer": (
        lambda: unirnn.load_weights(LSTM.build("numpy"), TRAINED),
        errors.SpecError,
        "snapshot: given Sequential(",
    ),
    "the weights of a layer for a model": (
        lambda: unirnn.load_weights(MODEL.build("numpy"), drawn(LSTM)),
        errors.ArgumentError,
        "weights: missing embedding.weight, ",
    ),
    "the names of a framework": (
        lambda: TRAINED.to("keras"),
        errors.LimitError,
        "keras: given Sequential, expected a recurrent layer; see Snapshot.weights",
    ),
}


@pytest.mark.parametrize(("call", "kind", "words"), MODELS.values(), ids=MODELS.keys())
def test_mistakes_with_models(call: Callable[[], Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value).startswith(words)


def test_mistakes_in_loading_the_weights_of_a_model_change_nothing() -> None:
    net = MODEL.build("numpy", seed=1)
    before = unirnn.snapshot(net)
    other = Sequential(**{**dict(MODEL.children), "encoder": GRUSpec(4, 4, batch_first=True)})
    for taken, kind, words in (
        (
            Snapshot(other, _weights.draw(other, 0)),
            errors.ShapeError,
            r"weights\['encoder.weight_ih_l0'\]: given shape",
        ),
        (Snapshot(MODEL, _weights.draw(MODEL, 0)), errors.DTypeError, "module: it is of float32, which can't hold emb"),
    ):
        with pytest.raises(kind, match=words):
            unirnn.load_weights(net, taken)
    bound = Sequential(**{**dict(MODEL.children), "norm": BatchNormSpec(4, eps=0.5)})
    with pytest.raises(errors.SpecError, match="snapshot: given Sequential"):
        unirnn.load_weights(net, Snapshot(bound, TRAINED.weights))
    net.weights["embedding.weight"].setflags(write=False)
    with pytest.raises(errors.ArgumentError, match="is read-only, expected an array that can be written"):
        unirnn.load_weights(net, TRAINED)
    assert unirnn.snapshot(net) == before
