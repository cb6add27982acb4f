"""The packed kernel by torch: the cells, a step as a few in-place operations of torch's.

What makes them fast:

1. *Project.* One product makes the input's part of all gates for all rows, into the buffer that the steps then
   turn into the gates, in place.
2. *Step* on the rows still alive. What a step writes into the rows is what the next one reads, so no state is copied
   from step to step; only sequences that end, or begin (in the reverse direction), are (`_State`).
3. *Backward* is linear in the gradient of the state: whatever does not depend on that gradient is computed for a
   chunk of rows at once, small enough to stay in the cache; a step is then three or four calls, and each weight's
   gradient one product a chunk.

N is the number of rows, the sum of the lengths.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from unirnn import reference
from unirnn.kernels.packing import Chunk, Packing, Part

__all__ = ["CELLS", "ByTorch", "Rows"]


class Rows:
    """Where the valid steps of a batch `(T, B)` lie: the core's packing, for tensors.

    Parameters
    ----------
    packing
        The core's; in one part, where torch steps.
    backward
        Whether the steps are gone through from the last to the first.

    Attributes
    ----------
    count
        N.
    """

    def __init__(self, packing: Packing, backward: bool) -> None:
        self.packing = packing
        self.backward = backward
        self.count = packing.parts[-1].rows.stop
        dense = packing.is_dense
        self._rows, self._order = (None if dense else torch.from_numpy(part) for part in (packing.rows, packing.order))

    @cached_property
    def _part(self) -> Part:
        (part,) = self.packing.parts
        return part

    @cached_property
    def alive(self) -> list[int]:
        """How many sequences have a step t, for each t that any has."""
        return [n for n in self._part.alive if n]

    def pack(self, array: Tensor) -> Tensor:
        """`(T, B, F)` to `(N, F)`; may be a view."""
        rows = array.reshape(-1, array.shape[-1])
        return rows if self._rows is None else rows.index_select(0, self._rows)

    def blank(self, like: Tensor, width: int) -> Tensor:
        """`(T, B, F)`, zero in the padding, and still to be filled."""
        steps, batch_size = self.packing.shape
        make = like.new_empty if self.count == steps * batch_size else like.new_zeros
        return make((steps, batch_size, width))

    def unpack(self, rows: Tensor, out: Tensor) -> None:
        """`(N, F)` into the valid steps of `(T, B, F)`."""
        steps = out.view(-1, rows.shape[1])
        if self._rows is None:
            steps.copy_(rows)
        else:
            steps.index_copy_(0, self._rows, rows)

    def sort(self, state: Tensor) -> Tensor:
        """`(B, H)`: a copy with the sequences in the packed order."""
        return state.contiguous().clone() if self._order is None else state.index_select(0, self._order)

    def unsort(self, state: Tensor) -> Tensor:
        """`(B, H)`: a copy with the sequences in the batch's order again, or the same if it is that."""
        return state if self._order is None else torch.empty_like(state).index_copy_(0, self._order, state)

    def split(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The rows of each step, as views."""
        pieces: tuple[Tensor, ...] = torch.split(rows, self.alive)
        return pieces

    def steps(self) -> range:
        """The steps that any sequence has, in the order of the direction."""
        steps = range(len(self.alive))
        return steps[::-1] if self.backward else steps

    def chunks(self) -> Iterator["_Steps"]:
        """The same steps in the opposite order, a chunk of the packing at a time."""
        found, end = [], 0
        for chunk in self._part.chunks:
            first, end = end, end + sum(run.steps for run in chunk.runs)
            found.append(_Steps(chunk, range(first, end), self.alive[first:end]))
        for steps in found if self.backward else found[::-1]:
            yield steps if self.backward else steps._replace(order=steps.order[::-1])

    def before(self, after: Sequence[Tensor], initial: Tensor, t: int) -> tuple[Tensor, ...]:
        """The state from which step t went on, `(n, H)`, in one piece or two; ``after`` is that after each step."""
        n = self.alive[t]
        previous = t + 1 if self.backward else t - 1
        if not 0 <= previous < len(self.alive):
            return (initial[:n],)
        m = self.alive[previous]
        if n <= m:
            return (after[previous][:n],)
        return after[previous], initial[m:n]


class _Steps(NamedTuple):
    """The steps of a chunk.

    Parameters
    ----------
    chunk
        Where their rows are.
    order
        In which they are gone through.
    alive
        How many sequences each has, the earliest first.
    """

    chunk: Chunk
    order: range
    alive: list[int]

    @property
    def first(self) -> int:
        """The earliest."""
        return min(self.order)

    def split(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Of this chunk's rows, those of each step, as views; the earliest first."""
        pieces: tuple[Tensor, ...] = torch.split(rows, self.alive)
        return pieces


class _State:
    """One part of the state on its way through the steps.

    Parameters
    ----------
    initial
        `(B, H)`, sorted.

    Attributes
    ----------
    last
        What the last step has written, `(n, H)`: set by the loop.
    """

    def __init__(self, initial: Tensor) -> None:
        self.initial = initial
        self.last = initial
        self.count = len(initial)
        self._final = initial.clone()

    def alive(self, n: int) -> Tensor:
        """The state of the first n sequences, before a step. A sequence that ends leaves its state behind."""
        last, count = self.last, self.count
        if n == count:
            return last
        self.count = n
        if n < count:
            if last is not self.initial:
                self._final[n:count] = last[n:]
            return last[:n]
        return torch.cat((last, self.initial[count:n]))

    def final(self) -> Tensor:
        """`(B, H)`, after the last step."""
        if self.last is not self.initial:
            self._final[: self.count] = self.last
        return self._final


class ByTorch(ABC):
    """One layer in one direction; a subclass is one cell.

    Parameters
    ----------
    rows
        How the batch is packed.
    weights
        As torch has them.
    """

    parts: ClassVar[int] = 1
    """How many parts the state has."""
    kept: ClassVar[tuple[int, ...]] = ()
    """What is kept for the backward pass besides the outputs, by its width in H; first c, if the state has one."""
    from_input: ClassVar[tuple[int, ...]]
    """The gates whose arguments have an input's product, in the order of the gradient's first columns."""
    from_state: ClassVar[tuple[int, ...]]
    """The gates whose arguments have a state's product, in the order of the gradient's last columns."""
    columns: ClassVar[int]
    """The gradient's width in H."""

    def __init__(self, rows: Rows, weights: reference.Weights) -> None:
        self.rows = rows
        self.size = weights.weight_hh.shape[1]
        self.weights = weights

    def _gate(self, gates: Tensor, index: int) -> Tensor:
        """`(rows, H)`, a view of one gate."""
        return gates[:, index * self.size : (index + 1) * self.size]

    def _arrange(self, weight: Tensor, order: tuple[int, ...]) -> Tensor:
        """`(gates*H, ...)`, contiguous, with the gates in another order."""
        if order == tuple(sorted(order)):
            return weight.contiguous()
        pieces = weight.split(self.size)  # type: ignore[no-untyped-call]
        return torch.cat([pieces[k] for k in order])

    def _arrays(self, outputs: Tensor, blocks: Tensor) -> list[Tensor]:
        """The outputs, and what else is kept: `(N, width*H)` each, one after the other in ``blocks``."""
        sizes = [self.rows.count * width * self.size for width in self.kept]
        pieces = blocks.view(-1)[: sum(sizes)].split(sizes) if sizes else ()  # type: ignore[no-untyped-call]
        return [outputs, *(p.view(-1, width * self.size) for p, width in zip(pieces, self.kept, strict=True))]

    def forward(self, x: Tensor, initial: list[Tensor], outputs: Tensor, blocks: Tensor | None) -> list[Tensor]:
        """`(N, I)` and the initial state, sorted, to the final state.

        Fills ``outputs`` `(N, H)`, and ``blocks``, which is of the size of what is kept, if there is to be a backward
        pass.
        """
        if blocks is None:
            blocks = x.new_empty(self.rows.count, sum(self.kept) * self.size)
        return self._run(x, initial, self._arrays(outputs, blocks))

    @abstractmethod
    def _run(self, x: Tensor, initial: list[Tensor], kept: list[Tensor]) -> list[Tensor]:
        """As `forward`, with the outputs and what else is kept as arrays."""

    def backward(
        self,
        x: Tensor,
        initial: list[Tensor],
        outputs: Tensor,
        blocks: Tensor,
        d_outputs: Tensor | None,
        d_state: list[Tensor],
        *,
        d_x: Tensor | None,
        of_weights: bool,
    ) -> reference.Weights | None:
        """Gradients of the weights; fills ``d_x``, and makes ``d_state``, the final state's, the initial one's."""
        kept = self._arrays(outputs, blocks)
        rows, size, width = self.rows, self.size, self.columns * self.size
        weight_ih = self._arrange(self.weights.weight_ih, self.from_input)
        weight_hh = self._arrange(self.weights.weight_hh, self.from_state)
        after = [rows.split(part) for part in kept[: self.parts]]
        d_weight_ih, d_weight_hh = torch.zeros_like(weight_ih), torch.zeros_like(weight_hh)
        d_bias = x.new_zeros(width)
        # Written over by each chunk, so that they stay in the cache.
        most = max((steps.chunk.size for steps in rows.chunks()), default=0)
        gradients = x.new_empty((most, width))
        *befores, spare = (x.new_empty((most, size)) for _ in range(len(initial) + 1))
        for steps in rows.chunks():
            at, n = steps.chunk.rows, steps.chunk.size
            gradient, before = gradients[:n], [part[:n] for part in befores]
            for part, afters, begin in zip(before, after, initial, strict=True):
                torch.cat([piece for t in sorted(steps.order) for piece in rows.before(afters, begin, t)], out=part)
            self._coefficients(gradient, [part[at] for part in kept], before, spare[:n])
            self._back(steps, gradient, None if d_outputs is None else d_outputs[at], d_state, weight_hh)
            d_input, d_hidden = gradient[:, : len(weight_ih)], gradient[:, width - len(weight_hh) :]
            if d_x is not None:
                torch.mm(d_input, weight_ih, out=d_x[at])
            if of_weights:
                d_weight_ih.addmm_(d_input.t(), x[at])
                d_weight_hh.addmm_(d_hidden.t(), before[0])
                d_bias += gradient.sum(0)
        if not of_weights:
            return None
        d_bias_ih, d_bias_hh = d_bias[: len(weight_ih)], d_bias[width - len(weight_hh) :]
        to_torch = tuple(sorted(range(len(self.from_input)), key=self.from_input.__getitem__))
        of_state = tuple(sorted(range(len(self.from_state)), key=self.from_state.__getitem__))
        return reference.Weights(
            self._arrange(d_weight_ih, to_torch),
            self._arrange(d_weight_hh, of_state),
            self._arrange(d_bias_ih, to_torch).clone(),
            self._arrange(d_bias_hh, of_state).clone(),
        )

    @abstractmethod
    def _coefficients(self, out: Tensor, kept: list[Tensor], before: list[Tensor], spare: Tensor) -> None:
        """Of a chunk's rows: the gradients of the gates' arguments, but for the factor that a step back brings.

        ``spare`` `(rows, H)` is memory to use, until the chunk is done.
        """

    @abstractmethod
    def _back(
        self, steps: _Steps, gradient: Tensor, d_outputs: Tensor | None, d_state: list[Tensor], recurrent: Tensor
    ) -> None:
        """Go back over the steps of a chunk: finish the coefficients, and carry the gradient of the state."""


class _RNN(ByTorch):
    """``h' = act(x + W_hh h)``"""

    from_input = from_state = (0,)
    columns = 1
    relu: ClassVar[bool] = False

    def _run(self, x: Tensor, initial: list[Tensor], kept: list[Tensor]) -> list[Tensor]:
        (after,) = kept
        bias = None if self.weights.bias_ih is None else self.weights.bias_ih + self.weights.bias_hh
        _project(x, self.weights.weight_ih, bias, after)
        recurrent = self.weights.weight_hh.t().contiguous()
        activate = torch.relu_ if self.relu else torch.tanh_
        h, rows = _State(initial[0]), self.rows.split(after)
        for t in self.rows.steps():
            row = rows[t]
            h.last = activate(row.addmm_(h.alive(self.rows.alive[t]), recurrent))
        return [h.final()]

    def _coefficients(self, out: Tensor, kept: list[Tensor], before: list[Tensor], spare: Tensor) -> None:
        (after,) = kept
        if self.relu:
            torch.gt(after, 0, out=out)
        else:
            torch.mul(after, after, out=out).neg_().add_(1)

    def _back(
        self, steps: _Steps, gradient: Tensor, d_outputs: Tensor | None, d_state: list[Tensor], recurrent: Tensor
    ) -> None:
        (dh,) = d_state
        alive, whole, first = self.rows.alive, len(dh), steps.first
        d_gates, d_afters = steps.split(gradient), None if d_outputs is None else steps.split(d_outputs)
        for t in steps.order:
            n, k = alive[t], t - first
            d = dh if n == whole else dh[:n]
            if d_afters is not None:
                d.add_(d_afters[k])
            torch.mm(d_gates[k].mul_(d), recurrent, out=d)


class _ReluRNN(_RNN):
    relu = True


class _GRU(ByTorch):
    """``r, z = s(x + W h)    n = tanh(x_n + r * k)    h' = n + z * (h - n)`` with ``k = W_hn h + b_hn``.

    The gradients of a step stand in the order n, r, z, k: the first three belong to the input's products, the last
    three to those of the state.
    """

    kept = (3, 1)
    from_input, from_state = (2, 0, 1), (0, 1, 2)
    columns = 4

    def _run(self, x: Tensor, initial: list[Tensor], kept: list[Tensor]) -> list[Tensor]:
        after, gates, k = kept
        size = self.size
        bias, bias_hh = self.weights.bias_ih, self.weights.bias_hh
        bias_k = None
        if bias is not None and bias_hh is not None:
            bias = bias.clone()
            bias[: 2 * size] += bias_hh[: 2 * size]
            bias_k = bias_hh[2 * size :]
        _project(x, self.weights.weight_ih, bias, gates)
        recurrent_rz = self.weights.weight_hh[: 2 * size].t().contiguous()
        recurrent_k = self.weights.weight_hh[2 * size :].t().contiguous()
        split, alive = self.rows.split, self.rows.alive
        rzs, rs, zs, ns = (split(part) for part in (gates[:, : 2 * size], *(self._gate(gates, i) for i in range(3))))
        ks, afters = split(k), split(after)
        h = _State(initial[0])
        for t in self.rows.steps():
            before = h.alive(alive[t])
            if bias_k is None:
                torch.mm(before, recurrent_k, out=ks[t])
            else:
                torch.addmm(bias_k, before, recurrent_k, out=ks[t])
            rzs[t].addmm_(before, recurrent_rz).sigmoid_()
            n = ns[t].addcmul_(rs[t], ks[t]).tanh_()
            h.last = torch.lerp(n, before, zs[t], out=afters[t])
        return [h.final()]

    def _coefficients(self, out: Tensor, kept: list[Tensor], before: list[Tensor], spare: Tensor) -> None:
        _, gates, k = kept
        r, z, n = (self._gate(gates, i) for i in range(3))
        dn, dr, dz, dk = (self._gate(out, i) for i in range(4))
        one_less_z = torch.neg(z, out=spare).add_(1)
        torch.mul(n, n, out=dn).neg_().add_(1).mul_(one_less_z)
        torch.sub(before[0], n, out=dz).mul_(z).mul_(one_less_z)
        torch.mul(dn, r, out=dk)
        torch.mul(dk, k, out=dr).mul_(torch.neg(r, out=spare).add_(1))
        self._z = z

    def _back(
        self, steps: _Steps, gradient: Tensor, d_outputs: Tensor | None, d_state: list[Tensor], recurrent: Tensor
    ) -> None:
        (dh,) = d_state
        alive, whole, first = self.rows.alive, len(dh), steps.first
        by_gate = steps.split(gradient.view(-1, 4, self.size))
        d_hidden = steps.split(gradient[:, self.size :])
        zs, d_afters = steps.split(self._z), None if d_outputs is None else steps.split(d_outputs)
        for t in steps.order:
            n, k = alive[t], t - first
            d = dh if n == whole else dh[:n]
            if d_afters is not None:
                d.add_(d_afters[k])
            by_gate[k].mul_(d.unsqueeze(1))
            d.mul_(zs[k]).addmm_(d_hidden[k], recurrent)


class _LSTM(ByTorch):
    """``i, f, o = s(x + W h)    g = tanh(x + W h)    c' = f * c + i * g    h' = o * tanh(c')``

    The gates stand in the order i, f, o, g, so that one call makes the sigmoid of three.
    """

    parts = 2
    kept = (1, 4)
    from_input = from_state = (0, 1, 3, 2)
    columns = 4

    def _run(self, x: Tensor, initial: list[Tensor], kept: list[Tensor]) -> list[Tensor]:
        after_h, after_c, gates = kept
        order, bias_ih, bias_hh = self.from_input, self.weights.bias_ih, self.weights.bias_hh
        bias = None if bias_ih is None or bias_hh is None else self._arrange(bias_ih + bias_hh, order)
        _project(x, self._arrange(self.weights.weight_ih, order), bias, gates)
        recurrent = self._arrange(self.weights.weight_hh, order).t().contiguous()
        split, alive = self.rows.split, self.rows.alive
        rows, sigmoids, hs, cs = (split(part) for part in (gates, gates[:, : 3 * self.size], after_h, after_c))
        i, f, o, g = (split(self._gate(gates, k)) for k in range(4))
        h, c = (_State(part) for part in initial)
        for t in self.rows.steps():
            n = alive[t]
            rows[t].addmm_(h.alive(n), recurrent)
            sigmoids[t].sigmoid_()
            c.last = torch.mul(f[t], c.alive(n), out=cs[t]).addcmul_(i[t], g[t].tanh_())
            h.last = torch.tanh(c.last, out=hs[t]).mul_(o[t])
        return [h.final(), c.final()]

    def _coefficients(self, out: Tensor, kept: list[Tensor], before: list[Tensor], spare: Tensor) -> None:
        _, c, gates = kept
        i, f, o, g = (self._gate(gates, k) for k in range(4))
        di, df, do, dg = (self._gate(out, k) for k in range(4))
        sigmoids = gates[:, : 3 * self.size]
        torch.neg(sigmoids, out=out[:, : 3 * self.size]).add_(1).mul_(sigmoids)
        tanh_c = torch.tanh(c, out=spare)
        di.mul_(g)
        df.mul_(before[1])
        do.mul_(tanh_c)
        torch.mul(g, g, out=dg).neg_().add_(1).mul_(i)
        self._f = f
        self._dc = tanh_c.square_().neg_().add_(1).mul_(o)

    def _back(
        self, steps: _Steps, gradient: Tensor, d_outputs: Tensor | None, d_state: list[Tensor], recurrent: Tensor
    ) -> None:
        dh, dc = d_state
        alive, whole, first = self.rows.alive, len(dh), steps.first
        d_gates = steps.split(gradient)
        of_i_and_f = steps.split(gradient.view(-1, 4, self.size)[:, :2])
        of_o, of_g = (steps.split(self._gate(gradient, k)) for k in (2, 3))
        to_c, fs = steps.split(self._dc), steps.split(self._f)
        d_afters = None if d_outputs is None else steps.split(d_outputs)
        for t in steps.order:
            n, k = alive[t], t - first
            d, e = (dh, dc) if n == whole else (dh[:n], dc[:n])
            if d_afters is not None:
                d.add_(d_afters[k])
            e.addcmul_(d, to_c[k])
            of_i_and_f[k].mul_(e.unsqueeze(1))
            of_o[k].mul_(d)
            of_g[k].mul_(e)
            e.mul_(fs[k])
            torch.mm(d_gates[k], recurrent, out=d)


def _project(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """The input's part of all gates, and all biases that are only added."""
    if bias is None:
        torch.mm(x, weight.t(), out=out)
    else:
        torch.addmm(bias, x, weight.t(), out=out)


CELLS: dict[str, type[ByTorch]] = {"RNN_TANH": _RNN, "RNN_RELU": _ReluRNN, "GRU": _GRU, "LSTM": _LSTM}
"""By the name that torch has for a cell."""
