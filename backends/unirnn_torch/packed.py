"""The packed kernel on CPU: one layer in one direction, as the operators ``unirnn::rnn``, ``gru`` and ``lstm``.

What makes it fast, and keeps the promises without a mask:

1. *Pack.* Sort the sequences by length, longest first, and gather the valid steps into rows, step by step. The
   padding is never read. At step t the sequences that are still alive are the first ``alive[t]``. With no lengths, or
   all T long, the input lies so already.
2. *Project.* One product makes the input's part of all gates for all rows, into the buffer that the steps then
   turn into the gates, in place.
3. *Step* on the rows still alive. What a step writes into the rows is what the next one reads, so no state is copied
   from step to step; only sequences that end, or begin (in the reverse direction), are (`_State`).
4. *Backward* is linear in the gradient of the state: whatever does not depend on that gradient is computed for a
   chunk of rows at once, small enough to stay in the cache; a step is then three or four calls, and each weight's
   gradient one product a chunk.

They are operators, so that `torch.compile`, `torch.export` and its dynamic shapes see one node, whose lengths are
looked at, and checked, when it runs. What the backward pass needs is returned besides the results: buffers of as
many rows as the padded input has, since a trace can't know N, of which only the first N are written, or ever touched.
Second derivatives go through the core's plain path (`_differentiable`).

N is the number of rows, the sum of the lengths; `capacity` is T*B. float32 and float64.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import array_api_compat.torch as xp
import torch
from torch import Tensor

from unirnn import GRUSpec, LSTMSpec, RNNSpec, Spec, plain
from unirnn.call import Sizes
from unirnn.call import lengths as checked

__all__ = ["layer"]

_CHUNK = 384
"""How many rows a chunk has at most, if a step has no more."""


class _Rows:
    """Where the valid steps of a batch `(T, B)` lie.

    Attributes
    ----------
    dense
        Whether the rows are the steps, in their order.
    alive
        How many sequences have a step t, for each t that any has.
    starts
        Where the rows of each step begin, and the last one's end.
    count
        N.
    """

    def __init__(self, lengths: Tensor | None, steps: int, batch_size: int, backward: bool) -> None:
        self.shape = (steps, batch_size)
        self.backward = backward
        self._rows: Tensor | None = None
        self._order: Tensor | None = None
        alive = [batch_size] * steps
        if lengths is not None:
            values = checked(lengths.numpy(), Sizes(steps, batch_size))
            if values.size and values.min() < steps:
                ns = torch.from_numpy(values)
                self._order = ns.argsort(descending=True, stable=True)
                step = torch.arange(steps, device=ns.device).unsqueeze(1)
                valid = step < ns[self._order]
                self._rows = (step * batch_size + self._order)[valid]
                alive = valid.sum(dim=1).tolist()
        self.dense = self._rows is None
        self.alive = [n for n in alive if n]
        self.starts = [0]
        for n in self.alive:
            self.starts.append(self.starts[-1] + n)
        self.count = self.starts[-1]

    def pack(self, array: Tensor) -> Tensor:
        """`(T, B, F)` to `(N, F)`; may be a view."""
        rows = array.reshape(-1, array.shape[-1])
        return rows if self._rows is None else rows.index_select(0, self._rows)

    def blank(self, like: Tensor, width: int) -> Tensor:
        """`(T, B, F)`, zero in the padding, and still to be filled."""
        return like.new_empty((*self.shape, width)) if self.dense else like.new_zeros((*self.shape, width))

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

    def chunks(self) -> Iterator["_Chunk"]:
        """The same steps in the opposite order, as many at a time as have `_CHUNK` rows, at least one."""
        steps = self.steps()[::-1]
        begin, rows = 0, 0
        for end, t in enumerate(steps):
            if rows and rows + self.alive[t] > _CHUNK:
                yield _Chunk(self, steps[begin:end])
                begin, rows = end, 0
            rows += self.alive[t]
        if begin < len(steps):
            yield _Chunk(self, steps[begin:])

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


class _Chunk:
    """Some steps that follow each other.

    Attributes
    ----------
    steps
        In the order in which they are gone through.
    first, end
        The earliest, and the one after the latest.
    at
        Where their rows are.
    """

    def __init__(self, rows: _Rows, steps: range) -> None:
        self.steps = steps
        self.first, latest = sorted((steps[0], steps[-1]))
        self.end = latest + 1
        self.at = slice(rows.starts[self.first], rows.starts[self.end])
        self._alive = rows.alive[self.first : self.end]

    def split(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Of this chunk's rows, those of each step, as views; the earliest first."""
        pieces: tuple[Tensor, ...] = torch.split(rows, self._alive)
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


class _Direction(ABC):
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
    kept: ClassVar[tuple[int, ...]]
    """What is kept for the backward pass, by its width in H; first the state's parts after each step."""
    from_input: ClassVar[tuple[int, ...]]
    """The gates whose arguments have an input's product, in the order of the gradient's first columns."""
    from_state: ClassVar[tuple[int, ...]]
    """The gates whose arguments have a state's product, in the order of the gradient's last columns."""
    columns: ClassVar[int]
    """The gradient's width in H."""

    def __init__(self, rows: _Rows, weights: plain.Weights) -> None:
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

    @abstractmethod
    def forward(self, x: Tensor, initial: list[Tensor], kept: list[Tensor]) -> list[Tensor]:
        """`(N, I)` and the initial state, sorted, to the final state; fills what is kept, `(N, width*H)` each."""

    def backward(
        self,
        x: Tensor,
        initial: list[Tensor],
        kept: list[Tensor],
        d_after: Tensor | None,
        d_state: list[Tensor],
        *,
        d_x: Tensor | None,
        of_weights: bool,
    ) -> plain.Weights | None:
        """Gradients of the weights; fills ``d_x``, and makes ``d_state``, the final state's, the initial one's."""
        rows, size, width = self.rows, self.size, self.columns * self.size
        weight_ih = self._arrange(self.weights.weight_ih, self.from_input)
        weight_hh = self._arrange(self.weights.weight_hh, self.from_state)
        after = [rows.split(part) for part in kept[: self.parts]]
        d_weight_ih, d_weight_hh = torch.zeros_like(weight_ih), torch.zeros_like(weight_hh)
        d_bias = x.new_zeros(width)
        # Written over by each chunk, so that they stay in the cache.
        most = max([_CHUNK, *rows.alive])
        gradients = x.new_empty((most, width))
        *befores, spare = (x.new_empty((most, size)) for _ in range(len(initial) + 1))
        for chunk in rows.chunks():
            n = chunk.at.stop - chunk.at.start
            gradient, before = gradients[:n], [part[:n] for part in befores]
            for part, steps, begin in zip(before, after, initial, strict=True):
                pieces = [piece for t in range(chunk.first, chunk.end) for piece in rows.before(steps, begin, t)]
                torch.cat(pieces, out=part)
            self._coefficients(gradient, [part[chunk.at] for part in kept], before, spare[:n])
            self._back(chunk, gradient, None if d_after is None else d_after[chunk.at], d_state, weight_hh)
            d_input, d_hidden = gradient[:, : len(weight_ih)], gradient[:, width - len(weight_hh) :]
            if d_x is not None:
                torch.mm(d_input, weight_ih, out=d_x[chunk.at])
            if of_weights:
                d_weight_ih.addmm_(d_input.t(), x[chunk.at])
                d_weight_hh.addmm_(d_hidden.t(), before[0])
                d_bias += gradient.sum(0)
        if not of_weights:
            return None
        d_bias_ih, d_bias_hh = d_bias[: len(weight_ih)], d_bias[width - len(weight_hh) :]
        to_torch = tuple(sorted(range(len(self.from_input)), key=self.from_input.__getitem__))
        of_state = tuple(sorted(range(len(self.from_state)), key=self.from_state.__getitem__))
        return plain.Weights(
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
        self, chunk: _Chunk, gradient: Tensor, d_after: Tensor | None, d_state: list[Tensor], recurrent: Tensor
    ) -> None:
        """Go back over a chunk's steps: finish the coefficients, and carry the gradient of the state."""


class _RNN(_Direction):
    """``h' = act(x + W_hh h)``"""

    kept = (1,)
    from_input = from_state = (0,)
    columns = 1
    relu: ClassVar[bool] = False

    def forward(self, x: Tensor, initial: list[Tensor], kept: list[Tensor]) -> list[Tensor]:
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
        self, chunk: _Chunk, gradient: Tensor, d_after: Tensor | None, d_state: list[Tensor], recurrent: Tensor
    ) -> None:
        (dh,) = d_state
        alive, whole = self.rows.alive, len(dh)
        d_gates, d_outputs = chunk.split(gradient), None if d_after is None else chunk.split(d_after)
        for t in chunk.steps:
            n, k = alive[t], t - chunk.first
            d = dh if n == whole else dh[:n]
            if d_outputs is not None:
                d.add_(d_outputs[k])
            torch.mm(d_gates[k].mul_(d), recurrent, out=d)


class _ReluRNN(_RNN):
    relu = True


class _GRU(_Direction):
    """``r, z = s(x + W h)    n = tanh(x_n + r * k)    h' = n + z * (h - n)`` with ``k = W_hn h + b_hn``.

    The gradients of a step stand in the order n, r, z, k: the first three belong to the input's products, the last
    three to those of the state.
    """

    kept = (1, 3, 1)
    from_input, from_state = (2, 0, 1), (0, 1, 2)
    columns = 4

    def forward(self, x: Tensor, initial: list[Tensor], kept: list[Tensor]) -> list[Tensor]:
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
        self, chunk: _Chunk, gradient: Tensor, d_after: Tensor | None, d_state: list[Tensor], recurrent: Tensor
    ) -> None:
        (dh,) = d_state
        alive, whole = self.rows.alive, len(dh)
        by_gate = chunk.split(gradient.view(-1, 4, self.size))
        d_hidden = chunk.split(gradient[:, self.size :])
        zs, d_outputs = chunk.split(self._z), None if d_after is None else chunk.split(d_after)
        for t in chunk.steps:
            n, k = alive[t], t - chunk.first
            d = dh if n == whole else dh[:n]
            if d_outputs is not None:
                d.add_(d_outputs[k])
            by_gate[k].mul_(d.unsqueeze(1))
            d.mul_(zs[k]).addmm_(d_hidden[k], recurrent)


class _LSTM(_Direction):
    """``i, f, o = s(x + W h)    g = tanh(x + W h)    c' = f * c + i * g    h' = o * tanh(c')``

    The gates stand in the order i, f, o, g, so that one call makes the sigmoid of three.
    """

    parts = 2
    kept = (1, 1, 4)
    from_input = from_state = (0, 1, 3, 2)
    columns = 4

    def forward(self, x: Tensor, initial: list[Tensor], kept: list[Tensor]) -> list[Tensor]:
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
        self, chunk: _Chunk, gradient: Tensor, d_after: Tensor | None, d_state: list[Tensor], recurrent: Tensor
    ) -> None:
        dh, dc = d_state
        alive, whole = self.rows.alive, len(dh)
        d_gates = chunk.split(gradient)
        of_i_and_f = chunk.split(gradient.view(-1, 4, self.size)[:, :2])
        of_o, of_g = (chunk.split(self._gate(gradient, k)) for k in (2, 3))
        to_c, fs = chunk.split(self._dc), chunk.split(self._f)
        d_outputs = None if d_after is None else chunk.split(d_after)
        for t in chunk.steps:
            n, k = alive[t], t - chunk.first
            d, e = (dh, dc) if n == whole else (dh[:n], dc[:n])
            if d_outputs is not None:
                d.add_(d_outputs[k])
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


# ---- the operators -------------------------------------------------------------------------------------------------


class _Call:
    """The arguments that a cell's operator and its backward pass share, by name.

    Parameters
    ----------
    parts
        How many parts the state has.
    arguments
        ``(x, lengths, *state, *weights, backward)``, and whatever else: `rest`.
    """

    def __init__(self, parts: int, arguments: Sequence[Any]) -> None:
        self.x: Tensor = arguments[0]
        self.lengths: Tensor | None = arguments[1]
        self.state: tuple[Tensor, ...] = tuple(arguments[2 : 2 + parts])
        self.weights = plain.Weights(*arguments[2 + parts : 6 + parts])
        self.backward: bool = arguments[6 + parts]
        self.rest = arguments[7 + parts :]

    def rows(self) -> _Rows:
        return _Rows(self.lengths, self.x.shape[0], self.x.shape[1], self.backward)


def _forward(cell: type[_Direction], call: _Call, keep: bool) -> tuple[Tensor, ...]:
    """``(output, *final, *kept)``; what is kept is empty if it need not be."""
    x, rows, size = call.x, call.rows(), call.weights.weight_hh.shape[1]
    capacity = x.shape[0] * x.shape[1] if keep else rows.count
    kept = [x.new_empty((capacity, width * size)) for width in cell.kept]
    # No view of something larger: those of an operator can't be changed in place.
    output = rows.blank(x, size)
    if rows.dense and not keep:
        kept[0] = output.view(capacity, size)
    used = [part[: rows.count] for part in kept]
    final = cell(rows, call.weights).forward(rows.pack(x), [rows.sort(part) for part in call.state], used)
    if keep or not rows.dense:
        rows.unpack(used[0], out=output)
    if not keep:
        kept = [x.new_empty((0, 0)) for _ in kept]
    return output, *(rows.unsort(part) for part in final), *kept


def _backward(
    cell: type[_Direction],
    call: _Call,
    kept: Sequence[Tensor],
    d_results: Sequence[Tensor | None],
    needed: tuple[bool, bool],
) -> tuple[Tensor, ...]:
    """Gradients ``(x, *state, *weights)``; empty where they are not needed, or there is no bias."""
    x, rows = call.x, call.rows()
    if len(kept[0]) < rows.count:  # a graph that was traced without gradients
        kept = _forward(cell, call, True)[1 + cell.parts :]
    d_output, *d_final = d_results
    d_state = [
        torch.zeros_like(part) if d is None else rows.sort(d) for part, d in zip(call.state, d_final, strict=True)
    ]
    d_x = d_rows = None
    if needed[0]:
        d_x = rows.blank(x, x.shape[2])
        d_rows = d_x.view(-1, x.shape[2]) if rows.dense else x.new_empty((rows.count, x.shape[2]))
    d_weights = cell(rows, call.weights).backward(
        rows.pack(x),
        [rows.sort(part) for part in call.state],
        [part[: rows.count] for part in kept],
        None if d_output is None else rows.pack(d_output),
        d_state,
        d_x=d_rows,
        of_weights=needed[1],
    )
    if d_x is not None and d_rows is not None and not rows.dense:
        rows.unpack(d_rows, out=d_x)
    results = [x.new_empty((0,)) if d_x is None else d_x, *(rows.unsort(part) for part in d_state)]
    for weight, gradient in zip(call.weights[:4], d_weights or [None] * 4, strict=False):
        results.append(x.new_empty((0,)) if weight is None or gradient is None else gradient)
    return tuple(results)


def _differentiable(mode: str, call: _Call) -> tuple[Tensor, ...]:
    """``(output, *final)`` by the plain path, whose gradients have gradients."""
    x, size = call.x, call.weights.weight_hh.shape[1]
    bias = call.weights.bias_ih is not None
    spec: Spec
    if mode.startswith("RNN"):
        spec = RNNSpec(x.shape[2], size, bias=bias, nonlinearity="relu" if mode == "RNN_RELU" else "tanh")
    else:
        spec = (GRUSpec if mode == "GRU" else LSTMSpec)(x.shape[2], size, bias=bias)
    ragged = None if call.lengths is None else plain.Lengths(xp, call.lengths, x.shape[0])
    if ragged is not None:
        x = ragged.select(xp, x)
    if call.backward:
        x = plain.turn(xp, x, ragged)
    output, final = plain.direction(xp, spec, x, call.state, call.weights, ragged)
    if ragged is not None:
        output = ragged.select(xp, output)
    return plain.turn(xp, output, ragged) if call.backward else output, *final


def _define(mode: str, cell: type[_Direction]) -> Any:
    """Register the operator of a cell, and the one that is its backward pass."""
    name, parts = mode.lower(), cell.parts
    states = ("h", "c")[:parts]
    inputs = [
        "Tensor x",
        "Tensor? lengths",
        *(f"Tensor {part}_0" for part in states),
        "Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, bool backward",
    ]
    kept = [f"Tensor kept_{i}" for i in range(len(cell.kept))]
    d_results = [f"Tensor? d_{part}" for part in ("output", *states)]
    number = 6 + parts  # of the tensors among the inputs

    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        call = _Call(parts, arguments)
        return _forward(cell, call, *call.rest)

    def forward_fake(*arguments: Any) -> tuple[Tensor, ...]:
        call = _Call(parts, arguments)
        (keep,) = call.rest
        steps, batch_size, _ = call.x.shape
        size = call.weights.weight_hh.shape[1]
        return (
            call.x.new_empty((steps, batch_size, size)),
            *(part.new_empty((batch_size, size)) for part in call.state),
            *(call.x.new_empty((steps * batch_size, width * size) if keep else (0, 0)) for width in cell.kept),
        )

    def backward(*arguments: Any) -> tuple[Tensor, ...]:
        call = _Call(parts, arguments)
        *tensors, of_x, of_weights = call.rest
        return _backward(cell, call, tensors[: len(kept)], tensors[len(kept) :], (of_x, of_weights))

    def backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
        call = _Call(parts, arguments)
        *_, of_x, of_weights = call.rest
        empty = (0,)
        return (
            call.x.new_empty(call.x.shape if of_x else empty),
            *(part.new_empty(part.shape) for part in call.state),
            *(call.x.new_empty(empty if w is None or not of_weights else w.shape) for w in call.weights[:4]),
        )

    def register(
        name: str, arguments: list[str], results: int, run: Callable[..., Any], fake: Callable[..., Any]
    ) -> Any:
        schema = f"({', '.join(arguments)}) -> ({', '.join(['Tensor'] * results)})"
        torch.library.define(f"unirnn::{name}", schema, tags=torch.Tag.pt2_compliant_tag)
        torch.library.impl(f"unirnn::{name}", "cpu", run)
        torch.library.register_fake(f"unirnn::{name}", fake)
        return getattr(torch.ops.unirnn, name).default

    # Not by torch.library.custom_op, whose first call imports the compiler: it takes seconds, and 70 MiB.
    operator = register(name, [*inputs, "bool keep"], 1 + parts + len(cell.kept), forward, forward_fake)
    gradient = register(
        f"{name}_backward",
        [*inputs, *kept, *d_results, "bool of_x", "bool of_weights"],
        parts + 5,
        backward,
        backward_fake,
    )

    def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:number], *output[1 + parts :])
        ctx.backward = inputs[number]
        ctx.mark_non_differentiable(*output[1 + parts :])
        ctx.set_materialize_grads(False)  # zeros for all that is kept would cost as much as the pass

    def differentiate(ctx: Any, *d: Tensor | None) -> tuple[Any, ...]:
        tensors, d_results = ctx.saved_tensors, d[: 1 + parts]
        needed = ctx.needs_input_grad[:number]
        if torch.is_grad_enabled():  # exactly under create_graph
            # Views, since one tensor may stand in two places.
            given = [None if t is None else t.view_as(t) for t in tensors[:number]]
            results = _differentiable(mode, _Call(parts, [*given, ctx.backward]))
            wanted = [t for t, need in zip(given, needed, strict=True) if need and t is not None]
            gradients = torch.autograd.grad(
                [result for result, d in zip(results, d_results, strict=True) if d is not None],
                wanted,
                [d for d in d_results if d is not None],
                create_graph=True,
                materialize_grads=True,
            )
            found = iter(gradients)
            return *(next(found) if need else None for need in needed), None, None
        d_x, *others = gradient(
            *tensors[:number], ctx.backward, *tensors[number:], *d_results, needed[0], any(needed[2 + parts :])
        )
        by_input = (d_x, None, *others)
        return *(g if need else None for g, need in zip(by_input, needed, strict=True)), None, None

    torch.library.register_autograd(f"unirnn::{name}", differentiate, setup_context=setup)
    return operator


_CELLS: dict[str, type[_Direction]] = {"RNN_TANH": _RNN, "RNN_RELU": _ReluRNN, "GRU": _GRU, "LSTM": _LSTM}
_OPERATORS = {mode: _define(mode, cell) for mode, cell in _CELLS.items()}


def layer(
    mode: str, x: Tensor, lengths: Tensor | None, state: Sequence[Tensor], weights: Sequence[plain.Weights]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run one layer.

    Parameters
    ----------
    mode
        As `torch.nn.RNNBase` calls the cell: ``RNN_TANH``, ``RNN_RELU``, ``GRU`` or ``LSTM``.
    x
        `(T, B, I)`, on the CPU, of float32 or float64.
    lengths
        `(B,)` int64 on the CPU; None if every step is valid.
    state
        Initial state, `(D, B, H)` each.
    weights
        Of each direction, without a projection.

    Returns
    -------
    output
        `(T, B, D*H)`, zero in the padding.
    final_state
        `(D, B, H)` each.

    Raises
    ------
    LengthError
        When it runs, if a length is below 0 or above T.
    """
    outputs, finals = [], []
    for k, of_direction in enumerate(weights):
        tensors = (x, lengths, *(part[k] for part in state), *of_direction[:4])
        keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
        output, *results = _OPERATORS[mode](*tensors, k == 1, keep)
        outputs.append(output)
        finals.append(results[: len(state)])
    final = tuple(torch.stack(parts) for parts in zip(*finals, strict=True))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2), final
