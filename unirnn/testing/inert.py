"""Check that the padding of a batch has no influence on a model of any framework."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unirnn.errors import ArgumentError

from ._influence import Change, Moved, name_of_result, sentences
from ._places import Deviation, Places, deviation, deviation_alone, find_places
from ._results import arrays_by_path
from ._runs import Runner
from ._tracebacks import is_for_the_test
from .batches import Batch
from .calling import Call, as_taken_by
from .causes.padding import Symptoms, is_recurrent, layer_at, padding_cause
from .frameworks import framework_of, generators_kept, without_cudnn
from .tolerances import check_tolerance, gaps, largest

__all__ = ["padding_is_inert"]

__tracebackhide__ = is_for_the_test

Array = NDArray[Any]
Arrays = Mapping[str, Array]
Layers = Mapping[tuple[str, int, str], Array]
"""The arrays that layers returned, by the layer's name, the number of the call, and the path of the array."""

GARBAGE = 1000.0
MORE_STEPS = 3
TOLERANCES = {"float16": 2e-2, "float32": 1e-4, "float64": 1e-9}
"""The default tolerance by the dtype of the results. It can be loose, since the padding is filled with large numbers,
and it has to be, since kernels for a single sequence round differently."""


def padding_is_inert(
    model: Any,
    batch: Batch,
    *,
    call: Call | None = None,
    gradients: bool = True,
    training: bool = True,
    nan: bool = True,
    tolerance: float | None = None,
) -> None:
    """Check that the padding of a batch has no influence on a model.

    First, the model runs with zeros in the padding. Then it runs with large numbers and with NaN (or with other tokens)
    in the padding, with more steps of padding, and on each sequence by itself without padding. None of these changes
    may move the results at valid steps, the final states, the gradients or the running statistics, and the gradient of
    the padding has to be exactly 0. All of this is checked in evaluation mode and, except for single sequences, in
    training mode with the same seed for each run. Results after the end of a sequence are ignored.

    A `UserWarning` names what could not be checked, for example if the model accepts only one number of steps. A
    function of NumPy arrays and a `unirnn.Model` on NumPy have no gradients to check.

    Parameters
    ----------
    model
        A ``torch.nn.Module``, a ``mindspore.nn.Cell``, a layer or a model of Keras, a module that unirnn built for any
        backend, or a callable that computes with NumPy. The check leaves its weights and running statistics unchanged.
    batch
        A batch with padding; see `unirnn.testing.batch`.
    call
        ``call(model, input, seq_length)``, with arrays of the framework, calls the model. By default, the names of the
        model's arguments tell how it is called; see `unirnn.testing.calling.call_model`.
    gradients
        Whether gradients are checked, provided that the framework has any.
    training
        Whether the model is checked in training mode as well.
    nan
        Whether the padding is filled with NaN as well. Some models can only pass without it: those that multiply by a
        mask, and those with a layer, such as a linear one, that also computes the padding, since the gradients of its
        weights are then NaN.
    tolerance
        The largest difference that is allowed, relative to the largest value of an array. None means 1e-9 for float64,
        1e-4 for float32 and 0.02 for float16.

    Raises
    ------
    AssertionError
        If the padding has an influence. The message says what moved, by how much, in which sequence and at which step
        first, which layer moved first, and the usual cause if it is recognised.
    ArgumentError
        If the batch has no padding, if the names of the model's arguments don't tell how to call it, if the model
        returns no arrays, or if its results differ between two calls with the same batch.

    Examples
    --------
    >>> import numpy as np
    >>> from unirnn.testing import Batch
    >>> batch = Batch(np.ones((2, 3, 1)), np.array([1, 3]))
    >>> def mean(x, lengths):
    ...     return x.sum(1) / lengths[:, None]
    >>> padding_is_inert(mean, batch)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    AssertionError: the padding has an influence on mean (numpy)
      in evaluation:
        output: off by 2e+03 (the largest value is 1), first in sequence 0 (length 1 of 3), when...
    """
    check_tolerance(tolerance)
    framework = framework_of(model)
    batch = as_taken_by(model, batch, framework.all_weights(model))
    if not batch.padding.any():
        raise ArgumentError("batch: all of its sequences have T steps, expected at least one with padding")
    base = batch.filled(0)
    if base.input.dtype.kind == "f" and not np.isfinite(base.input).all():
        raise ArgumentError(
            "batch: given NaN or infinity at valid steps, expected finite numbers, which show what moves"
        )
    with generators_kept(), framework.restored(model):  # even if a run raises an error
        check = _Check(model, call, base, gradients, nan, tolerance)
        check.find_places()
        found = check.find(training=False)
        if training:
            found += check.find(training=True)
        if found:
            raise AssertionError(check.text(found))
    for note in check.describe_notes():
        warnings.warn(note, UserWarning, stacklevel=2)


@dataclass(frozen=True, eq=False)
class _Run:
    """What one run gave: the results by path, and by name the gradients and, after training, weights and statistics."""

    outputs: Arrays
    gradients: Arrays
    statistics: Arrays


class _Check(Runner):
    """Runs one model on several batches, and finds what differs between the runs."""

    def __init__(
        self, model: Any, call: Call | None, base: Batch, gradients: bool, nan: bool, tolerance: float | None
    ) -> None:
        super().__init__(model, call)
        self.base, self.with_gradients, self.nan, self.given_tolerance = base, gradients, nan, tolerance
        self.without_dropout = False
        more = base.with_more_padding(MORE_STEPS)
        self.longer = Change(f"there are {MORE_STEPS} more steps of padding", "more padding", more)
        self.alone = [
            Change(f"sequence {b} is alone, without its padding", f"sequence {b} alone", base.alone(b), b)
            for b, n in enumerate(base.lengths.tolist())
            if 0 < n < base.steps
        ]
        self.places: dict[str, Places] = {}
        self.layer_places: dict[tuple[str, int, str], Places] = {}
        self.base_outputs: Arrays = {}
        self.kinds: dict[str, str] = {}
        self.notes: dict[str, list[str]] = {}

    # ---- runs ------------------------------------------------------------------------------------

    def find_places(self) -> None:
        """Run in evaluation mode with batches of several sizes, to learn what the axes of the results mean."""
        first = self.run(self.base, training=False, gradients=False)  # the first call may build the model's layers
        for path, kind in self.unread.items():
            self._note(f"an object of the class {kind} has no numbers that can be read", name_of_result(path))
        self.base_outputs, layers = self.watch_layers(self.base, training=False)
        self._check_repeats(first.outputs, self.base_outputs, "in evaluation")
        # A model may refuse other sizes. Wrong results of these runs are found later, by the checks.
        longer, longer_layers = self._try(self.longer)
        alone: dict[int, Arrays] = {}
        alone_layers: dict[int, Any] = {}
        for change in list(self.alone):
            assert change.alone is not None
            outputs, found = self._try(change)
            if outputs is None:
                self.alone.remove(change)
            elif self._has_whole_batch(outputs):
                self.alone.remove(change)
                size = self.base.batch_size
                self._note(f"the model returns a batch of {size} for one sequence as well", f"when {change.words}")
            else:
                alone[change.alone], alone_layers[change.alone] = outputs, found
        if longer is None:
            self.longer = replace(self.longer, batch=self.base)  # leaves this change out
        for path, array in self.base_outputs.items():
            others = {b: arrays[path] for b, arrays in alone.items() if path in arrays}
            self.places[path] = find_places(array, (longer or {}).get(path), others, self.base)
        self._note_nan()
        # A cell in a loop is called once for each step, but it is not known for which one. So it is left out.
        loops = {key[0] for key in {*layers} ^ {*(layers if longer_layers is None else longer_layers)}}
        for key, array in layers.items():
            others = {b: arrays[key] for b, arrays in alone_layers.items() if key in arrays}
            if key[0] not in loops:
                self.layer_places[key] = find_places(array, (longer_layers or {}).get(key), others, self.base)

    def _try(self, change: Change) -> tuple[Arrays | None, Any]:
        try:
            return self.watch_layers(change.batch, training=False)
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            self._note(f"the model raised {reason[:150]}", f"when {change.words}")
            return None, None

    def _note(self, reason: str, what: str) -> None:
        """Note that something is not checked, and why."""
        self.notes.setdefault(reason, []).append(what)

    def describe_notes(self) -> list[str]:
        """A sentence for each reason why something was not checked."""
        return [f"not checked, since {reason}: {'; '.join(what)}" for reason, what in self.notes.items()]

    def _has_whole_batch(self, outputs: Arrays) -> bool:
        """Whether results for one sequence have the size of the batch, for example because of a second input."""
        axis = 0 if self.base.batch_first else 1
        sizes = {array.shape[axis] for array in outputs.values() if array.ndim > axis}
        return 1 < self.base.batch_size in sizes and 1 not in sizes

    def _note_nan(self) -> None:
        """Note which results are NaN at valid steps, where nothing can be seen to move, and which are complex."""
        for path, array in self.base_outputs.items():
            places = self.places[path]
            if array.dtype.kind in "fc" and np.isnan(places.split(array, self.base.batch_size)[places.valid()]).any():
                self._note("it has NaN at valid steps, where no movement can be seen", name_of_result(path))
            if array.dtype.kind == "c" and self.with_gradients:
                self._note("it has complex numbers", f"the gradients of {name_of_result(path)}")

    def _check_repeats(self, first: Arrays, second: Arrays, when: str) -> None:
        for path, array in first.items():
            other = second.get(path)
            if other is None or other.shape != array.shape or not np.array_equal(array, other, _may_have_nan(array)):
                if other is not None and self._is_close(array, other):
                    continue
                raise ArgumentError(
                    f"model: given one whose {name_of_result(path)} differs {when} between two calls with the same "
                    "batch and seed, so the influence of the padding can't be found; it may keep a state from call to "
                    "call, or draw random numbers that the framework's seed does not determine"
                    + ("; give training=False" if "training" in when else "")
                )

    def _is_close(self, array: Array, other: Array) -> bool:
        """Whether two runs on the same batch differ only by rounding, as they do on some devices."""
        if array.shape != other.shape or array.dtype.kind not in "fc":
            return False
        return bool((gaps(array, other) <= self._tolerance(array) * largest(array)).all())

    @contextmanager
    def _seeded(self, training: bool, seed: int) -> Iterator[Any]:
        """A context in which the model is in a mode and the framework's generator has a seed."""
        with self.mode(training) as net:
            if training and self.without_dropout:
                _switch_off_dropout(net)
            self.framework.random_seed(seed)
            yield net

    def watch_layers(self, batch: Batch, *, training: bool) -> tuple[Arrays, Layers]:
        """Run the model; return its results, and those of each call of each layer."""
        with self._seeded(training, seed=0) as net:
            outputs, layers = self.watch(net, self.native(batch, net))
            self.kinds = {name: layer.kind for (name, _), layer in layers.items()}
            results = {key: self.numpy(arrays_by_path(layer.results)) for key, layer in layers.items()}
            found = {(*key, path): array for key, arrays in results.items() for path, array in arrays.items()}
            return self.numpy(outputs), found

    def run(self, batch: Batch, *, training: bool, seed: int = 0, gradients: bool = True) -> _Run:
        """Run the model; return its results, its gradients, and the weights and statistics that training changes."""
        with self._seeded(training, seed) as net:
            outputs = self.numpy(self.call_on(net, self.native(batch, net)))
            weights = self.framework.all_weights(net) if training else None
            statistics = {names[0]: np.array(array) for names, array in (weights or {}).items()}
        found: Arrays = {}
        if gradients and self.with_gradients:
            cotangents = self._cotangents(outputs)
            with self._seeded(training, seed) as net, nullcontext() if training else without_cudnn():
                gradients_by_name = self.differentiate(net, batch, cotangents) if cotangents else None
            found = {n: array for n, array in (gradients_by_name or {}).items() if not n.startswith("hx")}
        return _Run(outputs, found, statistics)

    def _cotangents(self, outputs: Arrays) -> dict[str, Array]:
        """The factors with which the results are multiplied before they are summed; 0 where a result is not valid."""
        rng = np.random.default_rng(0)
        found = {}
        for path, base in self.base_outputs.items():
            if base.dtype.kind != "f" or path not in outputs:
                continue
            places, shape = self.places[path], outputs[path].shape
            weights = rng.standard_normal(places.shape) * places.valid()
            if outputs[path].ndim == base.ndim and shape != base.shape:  # more padding, or fewer steps
                full = np.zeros(places.split(outputs[path], self.base.batch_size).shape)
                common = tuple(slice(min(a, b)) for a, b in zip(full.shape, weights.shape, strict=True))
                full[common] = weights[common]
                weights = full
            found[path] = weights.reshape(shape).astype(base.dtype)
        return found

    # ---- what differs ----------------------------------------------------------------------------

    def find(self, *, training: bool) -> list[Moved]:
        """Find everything that moves in one mode."""
        base = self.run(self.base, training=training)
        is_random = False
        if training:
            again = self.run(self.base, training=True, gradients=False)
            try:
                self._check_repeats(base.outputs, again.outputs, "in training")
            except ArgumentError:  # caused, for example, by MindSpore's own dropout, which no seed determines
                self.without_dropout = True
                base = self.run(self.base, training=True)
                again = self.run(self.base, training=True, gradients=False)
                self._check_repeats(base.outputs, again.outputs, "in training")
            is_random = self._is_random(base.outputs)
        found: list[Moved] = []
        for change in self._changes(training, is_random):
            with_gradients = change.alone is None
            run = self.run(change.batch, training=training, gradients=with_gradients)
            for what, d in self._differences(base, run, change):
                weight = what.removeprefix("the gradient of ")
                found.append(Moved(training, what, change, d, weight != what and weight in base.gradients))
        if "input" in base.gradients:
            zeros = Change("0 is in the padding", "0", self.base)
            differences = self._gradient_of_padding(base.gradients["input"], zeros)
            found += [Moved(training, what, zeros, d) for what, d in differences]
        return found

    def _is_random(self, outputs: Arrays) -> bool:
        """Whether the results in training mode are random, as with dropout."""
        others = self.base_outputs
        if self.framework.name in ("torch", "mindspore"):
            others = self.run(self.base, training=True, seed=1, gradients=False).outputs
        # In other frameworks, generators belong to layers and ignore the seed: compare with evaluation mode instead.
        return any(
            path not in others or not np.array_equal(a, others[path], _may_have_nan(a)) for path, a in outputs.items()
        )

    def _changes(self, training: bool, is_random: bool) -> Iterator[Change]:
        base = self.base
        if base.input.dtype.kind == "f":
            values = [(f"{value:g}", value) for value in (GARBAGE, -GARBAGE)]
            values += [("NaN", float("nan"))] if self.nan else []
        else:
            last = int(base.num_tokens or base.input.max() + 1) - 1
            values = [(f"token {token}", token) for token in dict.fromkeys((last, (last + 1) // 2))]
        for short, value in values:
            yield Change(f"{short} is in the padding", short, base.filled(value))
        if base.resets is not None:
            yield Change("resets are in the padding", "resets", replace(base, resets=base.resets ^ base.padding))
        # With another size, dropout draws different numbers.
        if self.longer.batch is not base and not is_random:
            yield self.longer
        if not training:  # in training, the sequences of a batch may depend on each other
            yield from self.alone

    def _differences(self, base: _Run, run: _Run, change: Change) -> Iterator[tuple[str, Deviation]]:
        for path, array in base.outputs.items():
            found = self._difference(array, run.outputs.get(path), self.places[path], change)
            if found is not None:
                yield name_of_result(path), found
        if change.alone is not None:
            return
        whole = Places((), None, (), {})
        most = max((largest(array) for name, array in base.gradients.items() if name != "input"), default=0.0)
        for name, array in base.gradients.items():
            other = run.gradients.get(name)
            if other is None:
                continue
            if name == "input":
                yield from self._differences_of_input(array, other, change)
                continue
            places = replace(whole, shape=array.shape)
            found = deviation(array, other, places, self.base, self._tolerance(array), 1e-3 * most)
            if found is not None:
                yield f"the gradient of {name}", found
        for name, array in base.statistics.items():
            places = replace(whole, shape=array.shape)
            found = deviation(array, run.statistics[name], places, self.base, self._tolerance(array))
            if found is not None:
                yield f"{name} after training", found

    def _difference(self, array: Array, other: Array | None, places: Places, change: Change) -> Deviation | None:
        if other is None:
            return None if change.alone is not None else Deviation(np.inf, 0, text="it is not returned")
        if change.alone is None:
            return deviation(array, other, places, self.base, self._tolerance(array))
        return deviation_alone(array, other, change.alone, places, self.base, self._tolerance(array))

    def _differences_of_input(self, array: Array, other: Array, change: Change) -> Iterator[tuple[str, Deviation]]:
        axis = 1 if self.base.batch_first else 0
        places = Places(array.shape, 1 - axis, (axis,), {axis: self.base.lengths})
        found = deviation(array, other, places, self.base, self._tolerance(array))
        if found is not None:
            yield "the gradient of the input", found
        yield from self._gradient_of_padding(other, change)

    def _gradient_of_padding(self, d_input: Array, change: Change) -> Iterator[tuple[str, Deviation]]:
        """Yield the gradient of the padding unless it is exactly 0."""
        padding = d_input[change.batch.padding]
        if (padding == 0).all():
            return
        axis = 1 if self.base.batch_first else 0
        where = np.argwhere((d_input != 0).any(tuple(range(2, d_input.ndim))) & change.batch.padding)
        step, sequence = min((int(row[axis]), int(row[1 - axis])) for row in where)
        size = float(np.abs(padding).max())
        text = "it is NaN" if np.isnan(size) else f"it is up to {size:.2g}, expected 0"
        yield "the gradient of the padding", Deviation(size, largest(d_input), sequence, step, text)

    def _tolerance(self, array: Array) -> float:
        return TOLERANCES.get(array.dtype.name, 1e-9) if self.given_tolerance is None else self.given_tolerance

    # ---- the message -----------------------------------------------------------------------------

    def text(self, found: list[Moved]) -> str:
        """Write the message of the AssertionError."""
        name = getattr(self.model, "__name__", type(self.model).__name__)
        lines = [*sentences(found, self.base), *self._first_layer(found), *self.describe_notes()]
        return "\n  ".join([f"the padding has an influence on {name} ({self.framework.name})", *lines])

    def _first_layer(self, found: list[Moved]) -> list[str]:
        """Describe the first layer that moved, and the usual cause."""
        values = [moved for moved in found if "gradient" not in moved.what]
        first = (values or found)[0]
        _, base = self.watch_layers(self.base, training=first.training)
        _, changed = self.watch_layers(first.change.batch, training=first.training)
        moved: tuple[str, int, str] | None = None
        before: list[str] = []
        for key, array in base.items():
            places = self.layer_places.get(key)
            if places is None or (key not in changed and first.change.alone is not None) or self._is_part(key[0]):
                continue
            if "flatten" in self.kinds[key[0]].lower():  # it only moves the padding to another place
                before.append(key[0])
                continue
            if self._difference(array, changed.get(key), places, first.change) is not None:
                moved = key
                break
            before.append(key[0])
        name = None if moved is None else moved[0]
        inner = [] if name is None else [key[0] for key in base if _is_within(key[0], name)]
        earlier = [layer for layer in before if name is None or (layer != name and not _is_within(name, layer))]
        after = f"{earlier[-1]} ({self.kinds[earlier[-1]]})" if earlier else None
        lines = []
        if name is not None:
            where = f"{name} ({self.kinds[name]})" if name else "none, only the results of the whole model"
            lines.append(f"first layer that moved: {where}" + ("" if after is None else f"; before it: {after}"))
        cause = padding_cause(
            Symptoms(
                layer=None if name is None else layer_at(self.model, name),
                kind=None if name is None else self.kinds[name],
                name=name,
                path="" if moved is None else moved[2],
                after=after,
                has_inner=bool(inner) and not is_recurrent(self.kinds[name or ""]),
                is_of_gradients=not values,
                is_of_nan=all(row.change.short == "NaN" for row in found),
                is_of_training=all(row.training for row in values),
                is_of_empty=bool(values) and all(self._is_of_empty(row.difference) for row in values),
            )
        )
        return [*lines, *([] if cause is None else [f"usual cause: {cause}"])]

    def _is_part(self, name: str) -> bool:
        """Whether a layer is part of a recurrent one, which may run its steps in another order."""
        return any(layer and is_recurrent(kind) and _is_within(name, layer) for layer, kind in self.kinds.items())

    def _is_of_empty(self, d: Deviation) -> bool:
        return d.sequence is not None and self.base.lengths[d.sequence] == 0


def _is_within(name: str, layer: str) -> bool:
    """Whether a layer is inside another one."""
    return name != layer and (layer == "" or name.startswith(f"{layer}."))


def _may_have_nan(array: Array) -> bool:
    return array.dtype.kind in "fc"


def _switch_off_dropout(model: Any) -> None:
    """Put MindSpore's dropout layers into evaluation mode, since their generators can't be seeded again."""
    for _, cell in model.cells_and_names() if hasattr(model, "cells_and_names") else ():
        if "Dropout" in type(cell).__name__:
            cell.set_train(False)
