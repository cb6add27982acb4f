"""Run a model of any framework on NumPy arrays, for `assert_same` and `padding_is_inert`."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unirnn.contract.backend import Watched, leaves, with_leaves
from unirnn.errors import LimitError

from ._results import arrays_by_path, check_returned, unread_parts
from ._tracebacks import is_for_the_test
from .batches import Batch
from .calling import Call, call_model, gradients_of_module, unwrapped
from .frameworks import framework_of

__all__ = ["Runner"]

__tracebackhide__ = is_for_the_test

Array = NDArray[Any]


class Runner:
    """Runs a model. Whatever runs within `mode` leaves the model unchanged."""

    def __init__(self, model: Any, call: Call | None) -> None:
        self.model, self.call, self.framework = model, call, framework_of(model)
        self.unread: dict[str, str] = {}
        """The classes of the objects that the last call returned and whose numbers can't be read, by path."""

    @contextmanager
    def mode(self, training: bool) -> Iterator[Any]:
        """A context in which the model is in training or evaluation mode."""
        with self.framework.restored(self.model) as net:
            self.framework.set_training(net, training)
            yield net

    def native(self, batch: Batch, net: Any) -> Batch:
        """The batch with arrays of the framework. They are copies, so the model may change them in place."""
        return batch.changed(lambda array: self.framework.from_numpy(array.copy(), net))

    def numpy(self, arrays: Mapping[str, Any]) -> dict[str, Array]:
        """Convert arrays of the framework, and numbers, to NumPy arrays."""
        return {
            path: np.array(self.framework.to_numpy(part) if hasattr(part, "dtype") else part)
            for path, part in arrays.items()
        }

    def call_on(self, net: Any, batch: Batch) -> dict[str, Any]:
        """Call the model with arrays of the framework, and return the arrays in its results by path."""

        def run() -> Any:
            return call_model(net, batch, self.call)

        run_in_mode: Any = getattr(self.framework, "run", None)  # in Keras, the mode belongs to a call, not to a layer
        returned = run() if run_in_mode is None else run_in_mode(run)
        check_returned(self.model, returned)
        self.unread = unread_parts(returned)
        return arrays_by_path(returned)

    def watch(self, net: Any, batch: Batch) -> tuple[dict[str, Any], dict[tuple[str, int], Watched]]:
        """Call the model; return its results, and those of each layer by its name and the number of the call."""
        with self.framework.watch(unwrapped(net)) as layers:
            results = self.call_on(net, batch)
        calls: Counter[str] = Counter()
        found = {}
        for layer in layers:
            found[layer.name, calls[layer.name]] = layer
            calls[layer.name] += 1
        return results, found

    def differentiate(self, net: Any, batch: Batch, factors: Mapping[str, Array]) -> dict[str, Array] | None:
        """Differentiate the sum of results times factors, which are given by the paths of the results.

        The gradients are named ``input``, ``hx`` (or ``hx[0]``, ...), and after the weights. The result is None if the
        framework has no gradients.
        """
        given = leaves({"input": batch.input, "hx": batch.hx})
        native = [self.framework.from_numpy(array.copy(), net) for array in given.values()]
        native_factors = {path: self.framework.from_numpy(factor, net) for path, factor in factors.items()}

        def weighted(*arrays: Any) -> Any:
            moved = with_leaves({"input": 0, "hx": batch.hx}, dict(zip(given, arrays, strict=True)))
            results = self.call_on(net, replace(batch, **moved))
            products = [
                (results[path] * factor.reshape(results[path].shape)).sum()
                for path, factor in native_factors.items()
                if path in results
            ]
            return sum(products[1:], products[0])

        try:
            by_array, by_name = self.framework.gradient(weighted, native, unwrapped(net))
        except LimitError:
            if self.call is not None:
                return None
            return gradients_of_module(self.framework, net, batch, list(factors.values()))
        by_argument = {name: array for name, array in zip(given, by_array, strict=True) if array is not None}
        return {**by_argument, **by_name}
