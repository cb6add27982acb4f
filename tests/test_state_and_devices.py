"""States, devices, dtypes, limits, and the initial weights."""

from typing import Any

import numpy as np
import pytest

import unirnn
from unirnn import Device, GRUSpec, errors, state
from unirnn.contract import weights as _weights
from unirnn.devices import dtype_name
from unirnn.testing.tolerances import close

SPEC = GRUSpec(3, 4, 2, bidirectional=True)


class TestState:
    h = np.arange(4 * 5 * 4).reshape(4, 5, 4)

    def test_axes(self) -> None:
        named = state.axes(SPEC, self.h)
        assert named.shape == (2, 2, 5, 4)
        np.testing.assert_array_equal(named[1, 0], self.h[2])
        assert state.axes(SPEC, self.h[:, 0]).shape == (2, 2, 4)

    def test_last_layer(self) -> None:
        last = state.last_layer(SPEC, self.h)
        np.testing.assert_array_equal(last, np.concatenate([self.h[2], self.h[3]], axis=1))
        np.testing.assert_array_equal(state.last_layer(SPEC, self.h[:, 1]), last[1])
        assert state.last_layer(SPEC, self.h[:, :0]).shape == (0, 8)

    def test_the_last_layer_is_the_output_at_both_ends(self) -> None:
        module = SPEC.build("numpy", seed=0)
        output, h_n = module(np.ones((6, 2, 3), np.float32))
        np.testing.assert_array_equal(
            state.last_layer(SPEC, h_n), np.concatenate([output[-1, :, :4], output[0, :, 4:]], axis=1)
        )

    def test_other_layouts_and_back(self) -> None:
        assert state.to_batch_major(self.h).shape == (5, 4, 4)
        np.testing.assert_array_equal(state.from_batch_major(state.to_batch_major(self.h)), self.h)
        layers = state.to_layers(SPEC, self.h)
        np.testing.assert_array_equal(layers[1][1], self.h[3])
        np.testing.assert_array_equal(state.from_layers(layers, np.stack), self.h)

    @pytest.mark.parametrize("shape", [(3, 5, 4), (4,), (4, 1, 5, 4)])
    def test_mistakes(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(errors.ShapeError, match=r"state: given shape .* L\*D = 4"):
            state.axes(SPEC, np.zeros(shape))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cpu", Device("cpu")),
        ("gpu", Device("gpu")),
        ("cuda", Device("gpu")),
        ("cuda:1", Device("gpu", 1)),
        ("cpu:0", Device("cpu")),
        ("Ascend", Device("ascend")),
        ("npu:3", Device("ascend", 3)),
        (Device("cpu"), Device("cpu")),
    ],
)
def test_devices(name: Any, expected: Device) -> None:
    assert Device.parse(name) == expected
    assert Device.parse(str(expected)) == expected


@pytest.mark.parametrize("dtype", ["float32", np.float32, np.dtype("float32"), "torch.float32", "Float32"])
def test_dtypes(dtype: Any) -> None:
    assert dtype_name(dtype) == "float32"


def test_build_refuses_with_the_text_of_explain() -> None:
    spec, dtype, reason = GRUSpec(3, 4), "bfloat16", "numpy computes in float16, float32, float64, not in bfloat16"
    explained = unirnn.explain(spec, "numpy", dtype=dtype)
    assert [limit.text for limit in explained if limit.refuses] == [reason]
    assert not explained.builds
    with pytest.raises(errors.LimitError) as caught:
        spec.build("numpy", dtype=dtype)
    assert str(caught.value) == str(explained)


def test_build_does_not_refuse_a_difference() -> None:
    explained = unirnn.explain(SPEC, "numpy", dtype="float16")
    assert explained.builds
    assert "differs: float16 is computed in float32" in str(explained)
    output, _ = SPEC.build("numpy", dtype="float16", seed=0)(np.ones((5, 2, 3), np.float16))
    assert output.dtype == np.float16
    close(output, SPEC.build("numpy", seed=0)(np.ones((5, 2, 3), np.float32))[0], 2e-3)


def test_a_seed_always_draws_the_same_weights() -> None:
    drawn = _weights.draw(GRUSpec(3, 4), 0)
    assert drawn["weight_ih_l0"][0].tolist() == [0.1369616873214543, -0.2302132862361297, -0.4590264760638053]
    assert drawn["bias_hh_l0"][-1] == 0.431017315981155
