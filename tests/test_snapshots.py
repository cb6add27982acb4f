"""Snapshots, free of any framework: their values, stacks of them, state dicts, and writing them into a module."""

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
from unirnn import GRUSpec, LSTMSpec, RNNSpec, Snapshot, Spec, errors, state_dicts
from unirnn import weights as _weights
from unirnn.stacks import stack, unstack


def drawn(spec: Spec, seed: int = 0, dtype: str = "float32") -> Snapshot:
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

    def test_the_dtype_is_the_weights(self) -> None:
        wide = unirnn.snapshot(GRUSpec(3, 4).build("numpy", dtype="float64"))
        assert wide.dtype == "float64"
        assert wide.build("numpy").weights["bias_hh_l0"].dtype == np.float64
        assert wide.build("numpy", dtype="float32").weights["bias_hh_l0"].dtype == np.float32

    def test_copies(self) -> None:
        for copied in (pickle.loads(pickle.dumps(self.taken)), copy.deepcopy(self.taken)):
            assert copied == self.taken

    def test_of_a_module_that_came_by_pickle(self, tmp_path: Path) -> None:
        path = tmp_path / "module.pickle"
        path.write_bytes(pickle.dumps(self.taken.build("numpy")))
        code = f"import pickle, unirnn; print(unirnn.snapshot(pickle.load(open({str(path)!r}, 'rb'))))"
        printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
        assert printed.strip() == repr(self.taken)

    def test_weights_that_do_not_fit(self) -> None:
        weights = dict(self.taken.weights)
        with pytest.raises(errors.ShapeError, match=r"weights\['weight_ih_l0'\]: given shape \(12, 3\)"):
            Snapshot(GRUSpec(5, 4), weights)
        with pytest.raises(errors.ArgumentError, match="missing none; unknown bias_ih_l0, bias_hh_l0"):
            Snapshot(GRUSpec(3, 4, bias=False), weights)
        del weights["bias_hh_l0"]
        with pytest.raises(errors.ArgumentError, match="missing bias_hh_l0; unknown none"):
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
def test_a_stack_of_the_layers_is_the_whole(cell: str, num_layers: int, bias: bool, bidirectional: bool) -> None:
    arguments = {"input_size": 2, "hidden_size": 3, "bias": bias, "bidirectional": bidirectional, "batch_first": True}
    whole = drawn(Spec.from_dict({"cell": cell, "num_layers": num_layers, **arguments}))
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
def test_the_spec_follows_from_names_and_shapes(
    cell: str, sizes: tuple[int, int, int], bias: bool, bidirectional: bool, projected: bool, prefix: str
) -> None:
    input_size, hidden_size, num_layers = sizes
    arguments = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
    if cell == "LSTM" and projected:
        arguments["proj_size"] = hidden_size - 1
    spec: Spec = Spec.from_dict({"cell": cell, **arguments, "bias": bias, "bidirectional": bidirectional})
    shapes = {prefix + name: shape for name, shape in spec.weight_shapes().items()}
    shapes |= {"head.weight": (2, 4), "running": (), "weight_ih": (4, 4)}
    assert state_dicts.layers(shapes) == {prefix: spec}
    assert state_dicts.choose(shapes) == (prefix, spec)


def state_dict(*prefixes: str, spec: Spec = LSTMSpec(3, 4), **extra: Any) -> dict[str, Any]:  # noqa: B008 - frozen
    layers = {prefix + name: array for prefix in prefixes for name, array in drawn(spec).weights.items()}
    return {"head.bias": np.zeros(3, np.float32), **layers, **extra}


def test_a_layer_of_a_state_dict_by_its_prefix() -> None:
    weights = state_dict("encoder.lstm.", "decoder.lstm.")
    assert unirnn.snapshot(weights, prefix="encoder.lstm.") == drawn(LSTMSpec(3, 4))
    assert unirnn.snapshot(weights, prefix="encoder.lstm") == drawn(LSTMSpec(3, 4))
    assert unirnn.snapshot(state_dict("")) == drawn(LSTMSpec(3, 4))


def test_a_given_spec_says_what_names_and_shapes_do_not() -> None:
    for spec in (RNNSpec(3, 4, nonlinearity="relu"), GRUSpec(3, 4, reset_after=False, batch_first=True)):
        assert unirnn.snapshot(state_dict("rnn.", spec=spec), spec=spec).spec == spec


Mistake = tuple[Callable[[], Any], type[errors.UnirnnError], str]
LSTM = LSTMSpec(3, 4)
WEIGHTS = dict(drawn(LSTM).weights)
TAKING: dict[str, Mistake] = {
    "nothing": (
        lambda: unirnn.snapshot({}),
        errors.ArgumentError,
        "weights: given no recurrent layer, expected names such as 'weight_ih_l0'",
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
        "spec: given besides a module, which says itself what it is; leave it out",
    ),
    "a prefix besides a module": (
        lambda: unirnn.snapshot([LSTM.build("numpy")], prefix="lstm."),
        errors.ArgumentError,
        "prefix: given besides a module, which says itself what it is; leave it out",
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
        "shapes; give spec=",
    ),
    "a weight too few": (
        lambda: unirnn.snapshot({name: array for name, array in WEIGHTS.items() if name != "bias_hh_l0"}),
        errors.ArgumentError,
        "weights: missing bias_hh_l0; unknown none; LSTMSpec(3, 4) has weight_ih_l0, ",
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
def test_mistakes_in_taking(call: Callable[[], Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value).startswith(words)


# ---- writing into a module -----------------------------------------------------------------------


def test_a_list_of_modules_takes_a_stack() -> None:
    modules = [GRUSpec(3, 4).build("numpy", seed=1), GRUSpec(4, 4, 2).build("numpy", seed=2)]
    taken = drawn(GRUSpec(3, 4, 3))
    unirnn.load_weights(modules, taken)
    assert unirnn.snapshot(modules) == taken


def test_an_error_half_way_leaves_a_list_as_it_was() -> None:
    modules = [GRUSpec(n, 4).build("numpy", seed=n) for n in (3, 4)]
    before = unirnn.snapshot(modules)
    modules[1].weights["weight_ih_l0"].setflags(write=False)
    with pytest.raises(ValueError, match="read-only"):
        unirnn.load_weights(modules, drawn(GRUSpec(3, 4, 2)))
    assert unirnn.snapshot(modules) == before


WRITING: dict[str, tuple[Spec, Snapshot, type[errors.UnirnnError], str]] = {
    "other names": (
        GRUSpec(3, 4, bias=False),
        drawn(GRUSpec(3, 4)),
        errors.ArgumentError,
        "weights: missing none; unknown bias_ih_l0, bias_hh_l0",
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
        "snapshot: given float64, but the module is of float32; snapshot.cast('float32') rounds",
    ),
}


@pytest.mark.parametrize(("spec", "taken", "kind", "words"), WRITING.values(), ids=WRITING.keys())
def test_mistakes_in_writing_change_nothing(spec: Spec, taken: Snapshot, kind: type[Exception], words: str) -> None:
    module = spec.build("numpy", seed=1)
    before = unirnn.snapshot(module)
    with pytest.raises(kind) as caught:
        unirnn.load_weights(module, taken)
    assert str(caught.value).startswith(words)
    assert unirnn.snapshot(module) == before
