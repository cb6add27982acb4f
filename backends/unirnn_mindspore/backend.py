"""The ``mindspore`` backend; see `unirnn.contract.backend.Backend`."""

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import mindspore as ms
from mindspore import nn
from numpy.typing import NDArray

from unirnn import Device, Limit, RecurrentSpec, Spec
from unirnn.contract import weights as _weights
from unirnn.contract.backend import Arrays, Backend, check_computes_as, leaves, leaves_by_path
from unirnn.contract.limits import Kernel
from unirnn.devices import DTYPES, short_name
from unirnn.errors import DeviceError
from unirnn.specs import Model as Definition

from . import definitions, dispatch, models
from .checkpoints import encode, read_checkpoint
from .definitions import DefinitionCell
from .models import Model
from .module import Recurrent

__all__ = ["MindSporeBackend"]

Array = NDArray[Any]

_NATIVE: dict[str, Any] = {"RNN": ms.nn.RNN, "GRU": ms.nn.GRU, "LSTM": ms.nn.LSTM}
"""MindSpore's own layers."""
_CELLS: dict[str, Any] = {"RNN": ms.nn.RNNCell, "GRU": ms.nn.GRUCell, "LSTM": ms.nn.LSTMCell}
"""MindSpore's own steps of a layer."""
_TARGETS: dict[dispatch.DeviceKind, str] = {"cpu": "CPU", "gpu": "GPU", "ascend": "Ascend"}


@functools.cache
def _hint_at_blocking() -> None:
    """Log, once, that operators are launched asynchronously, which slows down PyNative mode on a CPU."""
    is_graph = ms.get_context("mode") == ms.GRAPH_MODE
    # There is no public function that tells.
    runtime = getattr(getattr(ms, "_c_expression", None), "RuntimeConf", None)
    is_blocking = getattr(runtime and runtime.get_instance(), "is_launch_blocking", None)
    if not is_graph and is_blocking is not None and not is_blocking():
        logging.getLogger("unirnn").warning(
            "MindSpore launches operators asynchronously, which is slow on a CPU; "
            "call mindspore.runtime.launch_blocking() once, at the start"
        )


class MindSporeBackend(Backend):
    """Builds `Recurrent` layers, models of them (`Model`), and models from code (`DefinitionCell`)."""

    name = "mindspore"
    support = dispatch.MODELS
    options = ("kernel",)

    def version(self) -> str:
        return f"mindspore {ms.__version__}"

    def devices(self) -> tuple[Device, ...]:
        current = self.default_device()
        if current.kind == "cpu":
            return (current,)
        # No other kinds of device: MindSpore runs on one at a time, and warns when it is asked for others.
        count = ms.hal.device_count(_TARGETS[current.kind])
        return (Device("cpu"), *(Device(current.kind, n) for n in range(count)))

    def default_device(self) -> Device:
        current = ms.get_context("device_target")
        return Device(next(kind for kind, target in _TARGETS.items() if target == current))

    def limits(self, spec: Spec, device: Device, dtype: str) -> Iterable[Limit]:
        return dispatch.limits(spec, device.kind, dtype)

    def kernels(self, spec: RecurrentSpec, device: Device, dtype: str) -> Iterable[Kernel]:
        return dispatch.describe(spec, device.kind, dtype)

    def build(
        self,
        spec: Spec,
        *,
        device: Device,
        dtype: str,
        weights: Arrays | None,
        seed: int | None,
        options: Mapping[str, Any],
    ) -> nn.Cell:
        kernel = options.get("kernel", "auto")
        dispatch.check_build(kernel, spec, device.kind, dtype)
        target, current = _TARGETS[device.kind], ms.get_context("device_target")
        if target != current or device.index not in (None, ms.get_context("device_id")):
            which = f"{target!r}" if device.index is None else f"{target!r}, {device.index}"
            raise DeviceError(
                f"device: given {str(device)!r}, but MindSpore runs on {current} {ms.get_context('device_id')}; "
                f"call mindspore.set_device({which}) before anything is built"
            )
        if target == "CPU":
            _hint_at_blocking()
        drawn = _weights.draw_globally(spec) if weights is None else weights
        make: Any = definitions.build if isinstance(spec, Definition) else models.build
        made: nn.Cell = make(spec, drawn, getattr(ms, dtype), device.kind, kernel)
        return made

    def read(self, module: Any) -> tuple[Spec, dict[str, Array]] | None:
        spec = _spec(module)
        if spec is None:
            return None
        known = (Recurrent, Model, DefinitionCell, *_NATIVE.values(), *_CELLS.values())
        check_computes_as(next(kind for kind in known if isinstance(module, kind)), module, "__call__", "construct")
        parameters = _parameters(module)
        return spec, {name: parameters[name].asnumpy() for name in spec.weight_shapes()}

    def describe(self, module: Any) -> tuple[Spec, str] | None:
        spec = _spec(module)
        if isinstance(module, (Model, DefinitionCell)):
            return module.spec, short_name(module.dtype)
        return None if spec is None else (spec, short_name(next(iter(_parameters(module).values())).dtype))

    def write(self, module: Any, weights: Arrays) -> None:
        parameters = _parameters(module)
        for name, array in weights.items():
            # Not by set_data: a function that ms.jit has compiled would go on with the old weights.
            ms.ops.assign(parameters[name], ms.Tensor(array, parameters[name].dtype))

    def all_weights(self, module: Any) -> dict[tuple[str, ...], Array] | None:
        if not isinstance(module, nn.Cell):
            return None
        owned = {name: p for name, p in module.parameters_dict().items() if short_name(p.dtype) in DTYPES}
        # A parameter has one name, that of the first place where it was put. Other places are found by their paths.
        names = {id(parameter): [name] for name, parameter in owned.items()}
        for path, cell in module.cells_and_names():
            for name, parameter in cell.parameters_and_names(path, expand=False):
                if name not in owned:
                    names.get(id(parameter), []).append(name)
        return {
            (*names[id(p)],): (p.astype(ms.float32) if p.dtype == ms.bfloat16 else p).asnumpy() for p in owned.values()
        }

    def known_layers(self, module: Any) -> dict[str, Spec]:
        return leaves_by_path({path: _spec(cell) for path, cell in module.cells_and_names()})

    def write_some(self, module: Any, weights: Arrays) -> None:
        owned = module.parameters_dict()
        for name, array in weights.items():
            ms.ops.assign(owned[name], ms.Tensor(array, owned[name].dtype))

    def read_file(self, path: str) -> tuple[dict[str, Array], dict[str, str]]:
        return read_checkpoint(path)

    def encode_file(self, spec: Spec, weights: Arrays, metadata: Mapping[str, str]) -> bytes:
        return encode(spec, weights, metadata)

    def from_numpy(self, array: Array, module: Any) -> ms.Tensor:
        return ms.Tensor(array)

    def to_numpy(self, array: Any) -> Array:
        # NumPy has no bfloat16; float32 holds all of its values.
        result: Array = (array.astype(ms.float32) if array.dtype == ms.bfloat16 else array).asnumpy()
        return result

    def detach(self, array: Any) -> Any | None:
        return ms.ops.stop_gradient(array) if isinstance(array, ms.Tensor) else None

    def like(self, array: Array, other: Any) -> Any | None:
        return ms.Tensor(array) if isinstance(other, ms.Tensor) else None

    def gradient(
        self, function: Callable[..., Any], arrays: Sequence[Any], module: Any = None
    ) -> tuple[list[Array | None], dict[str, Array]]:
        floats = [k for k, array in enumerate(arrays) if ms.ops.is_floating_point(array)]

        def of_floats(*tensors: ms.Tensor) -> Any:
            moved = dict(zip(floats, tensors, strict=True))
            return function(*(moved.get(k, array) for k, array in enumerate(arrays)))

        parameters = {} if module is None else _named(module)
        weights = {name: p for name, p in parameters.items() if p.requires_grad}
        by_input: list[Array | None] = [None] * len(arrays)
        if not floats and not weights:  # MindSpore refuses to be asked for nothing
            return by_input, {}
        positions = tuple(range(len(floats)))
        inputs = [arrays[k] for k in floats]
        found = ms.grad(of_floats, positions or None, list(weights.values()) or None)(*inputs)
        # In tuples, if there are arrays as well as weights.
        gradients = [self.to_numpy(gradient) for gradient in leaves({"gradients": found}).values()]
        for k, gradient in zip(floats, gradients, strict=False):
            by_input[k] = gradient
        return by_input, dict(zip(weights, gradients[len(floats) :], strict=True))

    @contextmanager
    def restored(self, module: Any) -> Iterator[Any]:
        weights = {names[0]: array.copy() for names, array in (self.all_weights(module) or {}).items()}
        modes = [(cell, cell.training) for _, cell in module.cells_and_names()]
        try:
            yield module
        finally:
            self.write_some(module, weights)
            for cell, mode in modes:  # a cell comes before those in it, whose modes it sets
                cell.set_train(mode)

    def hookable_layers(self, module: Any) -> Iterable[tuple[str, nn.Cell]]:
        cells: Iterable[tuple[str, nn.Cell]] = module.cells_and_names()
        return cells

    def random_seed(self, seed: int) -> None:
        ms.set_seed(seed)


def _parameters(module: Any) -> dict[str, Any]:
    """A module's parameters by torch's names: without the prefix that a cell around the module adds."""
    if isinstance(module, (Model, DefinitionCell)):
        return dict(module.parameters_and_names())
    suffix = "_l0" if isinstance(module, tuple(_CELLS.values())) else ""
    return {p.name.rpartition(".")[2] + suffix: p for p in module.get_parameters()}


def _named(module: nn.Cell) -> dict[str, Any]:
    """The parameters of any cell: by torch's names where it has a spec, and otherwise by their paths."""
    return dict(module.parameters_and_names()) if _spec(module) is None else _parameters(module)


def _spec(module: Any) -> Spec | None:
    """The spec of a module of ours, or of a layer or a step of MindSpore's, which have what their constructors got."""
    if isinstance(module, (Recurrent, Model, DefinitionCell)):
        return module.spec
    kinds = [kind for kind in _NATIVE if isinstance(module, (_NATIVE[kind], _CELLS[kind]))]
    if not kinds:
        return None
    is_step = isinstance(module, _CELLS[kinds[0]])
    parameters = _parameters(module)
    names = () if is_step else ("num_layers", "batch_first", "dropout", "bidirectional")
    arguments: dict[str, Any] = {
        "kind": kinds[0],
        "input_size": parameters["weight_ih_l0"].shape[1],
        "bias": "bias_ih_l0" in parameters,
        **{name: getattr(module, name) for name in ("hidden_size", *names)},
    }
    if kinds == ["RNN"]:
        functions = {"_DynamicRNNTanh": "tanh", "_DynamicRNNRelu": "relu"}
        arguments["nonlinearity"] = module.nonlinearity if is_step else functions[type(module.rnn).__name__]
    return RecurrentSpec.from_dict(arguments)
