"""The summary of a layer or a model: its layers, the shapes of their outputs, and what they cost."""

import html
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from unirnn.errors import ArgumentError, ShapeError

from .base import Spec
from .layers import EmbeddingSpec, LinearSpec
from .sequential import Concat, ModelSpec, Residual, Sequential

__all__ = ["COLUMNS", "Row", "Summary", "summarize"]

COLUMNS = ("name", "layer", "output", "parameters", "multiply-adds")
"""The columns of the table."""


class Row(NamedTuple):
    """One layer of a model.

    Parameters
    ----------
    name
        Its name in the model, ``"block.0"``; empty for a layer by itself.
    spec
        The layer.
    output
        The shape of its output: numbers, and symbols for sizes that are not known.
    parameters
        How many numbers it trains. Buffers, and a weight that is another layer's, do not count.
    multiply_adds
        For one sequence: per time step of the model's input, or once, if the layer comes after a pooling.
    is_once
        Whether it comes after a pooling, and is computed once for each sequence.
    """

    name: str
    spec: Spec
    output: tuple[int | str, ...]
    parameters: int
    multiply_adds: float
    is_once: bool


@dataclass(frozen=True)
class Summary:
    """The layers of a model; printed, a table with a line for each of them and one for all.

    Parameters
    ----------
    rows
        The layers.
    buffers
        How many numbers of the weights are not trained.
    """

    rows: tuple[Row, ...]
    buffers: int

    @property
    def parameters(self) -> int:
        """How many numbers the model trains."""
        return sum(row.parameters for row in self.rows)

    @property
    def multiply_adds(self) -> float:
        """The multiply-adds of all layers before a pooling, for one sequence and time step of the input."""
        return sum(row.multiply_adds for row in self.rows if not row.is_once)

    @property
    def multiply_adds_once(self) -> float:
        """The multiply-adds of all layers after a pooling, for one sequence."""
        return sum(row.multiply_adds for row in self.rows if row.is_once)

    @property
    def lines(self) -> list[tuple[str, ...]]:
        """The cells of the table: a line for each layer, and the total."""
        found = [
            (
                row.name,
                repr(row.spec),
                f"({', '.join(map(str, row.output))}{',' if len(row.output) == 1 else ''})",
                f"{row.parameters:,}",
                _number(row.multiply_adds) + (" once" if row.is_once and row.multiply_adds else ""),
            )
            for row in self.rows
        ]
        buffers = f"and {self.buffers:,} in buffers" if self.buffers else ""
        cost = f"{_number(self.multiply_adds)} a step"
        if self.multiply_adds_once:
            cost += f", {_number(self.multiply_adds_once)} once"
        return [*found, ("total", buffers, "", f"{self.parameters:,}", cost)]

    def __str__(self) -> str:
        table = [COLUMNS, *self.lines]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        padded = [
            "  ".join(
                cell.ljust(width) if number < 3 else cell.rjust(width)
                for number, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in table
        ]
        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        return "\n".join([padded[0], rule, *padded[1:-1], rule, padded[-1]])

    def _repr_html_(self) -> str:
        def line(tag: str, cells: tuple[str, ...]) -> str:
            aligned = [f'<{tag} style="text-align: {"left" if n < 3 else "right"}">' for n in range(len(cells))]
            parts = (f"{begin}{html.escape(cell)}</{tag}>" for begin, cell in zip(aligned, cells, strict=True))
            return f"<tr>{''.join(parts)}</tr>"

        body = "".join(line("td", cells) for cells in self.lines[:-1])
        return (
            f"<table><thead>{line('th', COLUMNS)}</thead><tbody>{body}</tbody>"
            f"<tfoot>{line('th', self.lines[-1])}</tfoot></table>"
        )


def summarize(spec: Spec, batch_size: int | None, steps: int | None) -> Summary:
    """See `Spec.summary`."""
    spec.check_complete()
    for name, given in (("batch_size", batch_size), ("steps", steps)):
        if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < 1):
            raise ArgumentError(f"{name}: given {given!r}, expected a positive integer or None")
    batch_first = getattr(spec, "batch_first", True)
    flow = _Flow(spec.input_features, _Steps(steps, "T"), 1.0)
    rows = tuple(_rows("", spec, flow, "B" if batch_size is None else batch_size, batch_first))
    shapes = spec.weight_shapes()
    return Summary(rows, sum(math.prod(shapes[name]) for name in spec.buffers))


class _Steps(NamedTuple):
    """How many steps there are: a number, or ``base + more`` as text."""

    number: int | None
    base: str
    more: int = 0

    def __str__(self) -> str:
        if self.number is not None:
            return str(self.number)
        return f"{self.base}{self.more:+}" if self.more else self.base


class _Flow(NamedTuple):
    """What flows through the layers: its features, its steps, and how many of them there are for one of the input."""

    features: int
    steps: _Steps | None
    rate: float


def _rows(name: str, spec: Spec, flow: _Flow, batch: int | str, batch_first: bool) -> Iterator[Row]:
    if isinstance(spec, ModelSpec):
        for child, layer in spec.children:
            if not isinstance(spec, (Sequential, Residual, Concat)):  # code, which calls each layer as it likes
                flow = flow._replace(features=layer.input_features)
            yield from _rows(f"{name}.{child}" if name else child, layer, flow, batch, batch_first)
            flow = _after(child, layer, flow) if isinstance(spec, Sequential) else flow
        return
    after = _after(name, spec, flow)
    features = after.features or "F"
    output: tuple[int | str, ...] = (batch, features)
    if after.steps is not None:
        steps = after.steps.number or str(after.steps)
        output = (batch, steps, features) if batch_first else (steps, batch, features)
    yield Row(
        name,
        spec,
        output,
        sum(math.prod(shape) for weight, shape in spec.weight_shapes().items() if weight not in spec.buffers),
        _products(spec) * after.rate,
        flow.steps is None,
    )


def _after(name: str, spec: Spec, flow: _Flow) -> _Flow:
    """What flows out of a layer or a model."""
    steps, rate = flow.steps, flow.rate
    for rule in spec.length_rules if steps is not None else ():
        assert steps is not None
        rate /= rule.stride
        more = steps.more + rule.padding - rule.span + rule.stride
        base = steps.base
        if rule.stride > 1:
            base, more = (f"({base}{more:+})" if more else base) + f"//{rule.stride}", 0
        number = None if steps.number is None else rule(steps.number)
        if number == 0:
            raise ShapeError(f"steps: too few, since {name or spec.kind} is left with {steps.number}: {spec!r}")
        steps = _Steps(number, base, more)
    if spec.ends_steps:
        steps, rate = None, 1.0
    return _Flow(spec.output_features(flow.features), steps, rate)


def _products(spec: Spec) -> int:
    """The multiply-adds of a layer for one step of its output: each number of a matrix is multiplied once."""
    if isinstance(spec, EmbeddingSpec):
        return 0
    if isinstance(spec, LinearSpec):
        return spec.in_features * spec.out_features
    return sum(math.prod(shape) for shape in spec.weight_shapes().values() if len(shape) > 1)


def _number(value: float) -> str:
    return f"{value:,.1f}".removesuffix(".0")
