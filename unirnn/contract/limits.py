"""What is supported: the limits of a backend, a kernel or a file format, known before the run.

Each of them is described by one `Support`, a row of a table. `Spec.build`, `unirnn.explain`, exports, the documentation
and the tests all read these rows.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from unirnn import specs
from unirnn.devices import DTYPES
from unirnn.errors import ArgumentError, LimitError
from unirnn.specs import ModelSpec, Spec
from unirnn.specs.arguments import ARGUMENTS

__all__ = ["ALL_KINDS", "ROUNDED_FLOAT16", "Kernel", "Limit", "Support", "check_kernel"]

ALL_KINDS = tuple(spec.kind for name in specs.__all__ if hasattr(spec := getattr(specs, name), "kind"))
"""The kinds of all specs of unirnn."""


@dataclass(frozen=True)
class Support:
    """What one implementation can compute or hold.

    Parameters
    ----------
    who
        How messages name it: ``"numpy"``, ``"torch's own layer"``.
    lacks
        The arguments of specs that it does not have, such as ``"proj_size"``: those that `Spec.uncommon` may give.
    kinds
        The kinds of specs that it has; `ALL_KINDS` for models and all of their layers.
    devices
        The kinds of device on which it runs.
    dtypes
        The dtypes in which it computes.
    derivatives
        0 if it has no gradients, 1 if it has gradients, 2 if those can be differentiated again.
    dropout
        Whether it applies dropout while training.
    exports
        How its framework exports what runs on it: ``"torch.export"``, ``"ONNX"``, ``"MindIR"``.

    Raises
    ------
    ArgumentError
        If a name is not one of those: what is misspelled would be no limit.

    Examples
    --------
    >>> import unirnn
    >>> keras = Support("keras", lacks=("proj_size",))
    >>> keras.unsupported_reason(unirnn.LSTMSpec(3, 4, proj_size=2))
    'keras has no LSTM with proj_size=2'
    """

    who: str
    lacks: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ("RNN", "GRU", "LSTM")
    devices: tuple[str, ...] = ("cpu", "gpu", "ascend")
    dtypes: tuple[str, ...] = DTYPES
    derivatives: int = 2
    dropout: bool = True
    exports: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        arguments = tuple(row.name for row in ARGUMENTS if row.without is not None)
        for name, given, known in (
            ("lacks", self.lacks, arguments),
            ("kinds", self.kinds, ALL_KINDS),
            ("devices", self.devices, ("cpu", "gpu", "ascend")),
            ("dtypes", self.dtypes, DTYPES),
        ):
            wrong = [one for one in given if one not in known]
            if wrong:
                advice = "; the method limits of a backend refuses anything else" if name == "lacks" else ""
                raise ArgumentError(f"{name}: given {wrong[0]!r}, expected some of {', '.join(known)}{advice}")

    def unsupported_reason(self, spec: Spec, device: str | None = None, dtype: str | None = None) -> str | None:
        """Why it can't serve a spec, or None if it can.

        Parameters
        ----------
        spec
            The layer.
        device
            ``"cpu"``, ``"gpu"`` or ``"ascend"``; None if any will do.
        dtype
            The name of a dtype; None if any will do.
        """
        kind = next((kind for kind in _kinds_of_models(spec) if kind not in self.kinds), None)
        if kind is not None:
            if kind == "Model":
                return f"{self.who} has no models from code; build it with torch, and export that"
            return f"{self.who} has no {kind}"
        for layer, leaf in spec.leaves().items():
            where = f"{layer}: " if layer else ""
            if leaf.kind not in self.kinds:
                return f"{where}{self.who} has no {leaf.kind}"
            for argument, value in leaf.uncommon().items():
                if argument in self.lacks:
                    return f"{where}{self.who} has no {leaf.kind} with {argument}={value!r}"
        if device is not None and device not in self.devices:
            return f"{self.who} runs on {' and '.join(self.devices)} only, not on {device}"
        if dtype is not None and dtype not in self.dtypes:
            return f"{self.who} computes in {', '.join(self.dtypes)}, not in {dtype}"
        return None


def _kinds_of_models(spec: Spec) -> Iterator[str]:
    """The kind of a model, and those of the models in it."""
    if isinstance(spec, ModelSpec):
        yield spec.kind
        for _, layer in spec.children:
            yield from _kinds_of_models(layer)


@dataclass(frozen=True)
class Limit:
    """Something that a backend can't do, or does differently.

    Parameters
    ----------
    text
        What it is, and what to do about it.
    refuses
        Whether `Spec.build` refuses because of it; if not, the module works, differently.
    """

    text: str
    refuses: bool = True

    def __str__(self) -> str:
        return ("can't: " if self.refuses else "differs: ") + self.text


ROUNDED_FLOAT16 = Limit("float16 is computed in float32, and the results are rounded", refuses=False)


class Kernel(NamedTuple):
    """One of the ways in which a backend computes a layer.

    Parameters
    ----------
    name
        As the argument ``kernel`` of `Spec.build` takes it.
    when
        When ``kernel="auto"`` takes it, as the end of a sentence: ``"in graph mode"``. None if it never does, so that
        this kernel runs only if it is asked for by name.
    """

    name: str
    when: str | None

    def __str__(self) -> str:
        if self.when is None:
            return f'{self.name} runs only if it is asked for by name: kernel="{self.name}".'
        return f'kernel="auto" takes {self.name} {self.when}.'


def check_kernel(kernel: str, support: Mapping[str, Support], spec: Spec, device: str, dtype: str) -> None:
    """Refuse a kernel that can't run a spec.

    Parameters
    ----------
    kernel
        As `Spec.build` was given it.
    support
        The backend's kernels by name.
    spec, device, dtype
        What is to be built, the kind of device, and the name of the dtype.

    Raises
    ------
    ArgumentError
        If the backend has no such kernel.
    LimitError
        If the kernel does not support the spec there.
    """
    if kernel not in support:
        raise ArgumentError(f"kernel: given {kernel!r}, expected one of {', '.join(map(repr, support))}")
    reason = support[kernel].unsupported_reason(spec, device, dtype)
    if reason is not None:
        raise LimitError(f"kernel: given {kernel!r}, but {reason}; build with 'auto'")
