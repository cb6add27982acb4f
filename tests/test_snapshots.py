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
from strategies import models

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

    def test_the_dtype_of_a_snapshot_is_that_of_its_weights(self) -> None:
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
    taken = unirnn.snapshot({"weight_ih_l0": [[1.0]] * 3, "weight_hh_l0": [[2.0]] * 3, "ragged": [[1.0], [2.0, 3.0]]})
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
)
def test_names_and_shapes_determine_the_spec(
    cell: str, sizes: tuple[int, int, int], bias: bool, bidirectional: bool, projected: bool, prefix: str
) -> None:
    input_size, hidden_size, num_layers = sizes
    arguments = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
    if cell == "LSTM" and projected:
        arguments["proj_size"] = hidden_size - 1
    spec = RecurrentSpec.from_dict({"kind": cell, **arguments, "bias": bias, "bidirectional": bidirectional})
    shapes = {prefix + name: shape for name, shape in spec.weight_shapes().items()}
    shapes |= {"head.weight": (2, 4), "running": (), "weight_ih": (4, 4)}
    assert state_dicts.find_layers(shapes) == {prefix: spec}
    assert state_dicts.choose_layer(shapes) == (prefix, spec)


LSTM = LSTMSpec(3, 4)
WEIGHTS = dict(drawn(LSTM).weights)


def state_dict(*prefixes: str, spec: RecurrentSpec = LSTMSpec(3, 4), **extra: Any) -> dict[str, Any]:  # noqa: B008 - frozen
    layers = {prefix + name: array for prefix in prefixes for name, array in drawn(spec).weights.items()}
    return {"head.bias": np.zeros(3, np.float32), **layers, **extra}


def test_a_layer_of_a_state_dict_by_its_prefix() -> None:
    weights = state_dict("encoder.lstm.", "decoder.lstm.")
    assert unirnn.snapshot(weights, prefix="encoder.lstm.") == drawn(LSTMSpec(3, 4))
    assert unirnn.snapshot(weights, prefix="encoder.lstm") == drawn(LSTMSpec(3, 4))
    assert unirnn.snapshot(state_dict("")) == drawn(LSTMSpec(3, 4))


def test_incomplete_layers_are_ignored() -> None:
    less = {"model.dec.weight_ih_l0": np.ones((12, 3)), "old.bias_hh_l0": np.ones(12)}
    weights = state_dict("encoder.") | less
    assert unirnn.snapshot(weights) == drawn(LSTMSpec(3, 4))
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
    # If the weight itself is there as well, its parts do not matter.
    weights[f"{prefix}weight_hh_l0"] = WEIGHTS["weight_hh_l0"]
    assert unirnn.snapshot(weights, spec=spec) == Snapshot(LSTM, WEIGHTS)


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
    unirnn.load_weights(with_biases, whole.cast("float64"))  # each number is also one of float32
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
    """The state dict that torch has of the model, under other names, and with a layer that the model does not have."""
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
    # Arrays that are shared may be there once, under either name.
    assert unirnn.snapshot(model_dict(**{"head.weight": None}), spec=MODEL, rename=RENAME) == TRAINED
    assert unirnn.snapshot(model_dict(**{"emb.weight": None}), spec=MODEL, rename=RENAME) == TRAINED
    # The longest beginning counts, and None leaves arrays out.
    more = {**RENAME, "": "no.", "bn.num": "bn.num", "conv.": "conv.", "head.": "head.", "head.aux.": None}
    assert unirnn.snapshot(model_dict(**{"head.aux.weight": np.ones(3)}), spec=MODEL, rename=more) == TRAINED
    # Under a prefix, what is elsewhere does not count.
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
