"""Reading a pickle as data: nothing in it is imported, called or copied; see `unirnn.files`.

A pickle is a program for a small stack machine. `pickletools` of the standard library splits it into operations and
checks that the bytes of each are there. `pickle.Unpickler` would run the program: it calls what the pickle names, and
where only harmless functions are allowed, a short pickle can still call one of them a thousand times on a long string.
Here an operation that would import or call something makes an inert `Global` or `Object` instead, which refers to its
parts and never copies them. So each operation takes a constant amount of memory besides its own bytes.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from unirnn.errors import FileError

__all__ = ["Global", "Object", "Pickle", "PickledDict", "Reference", "read_pickle"]

_LONGEST = 10_000_000  # operations, of some hundred bytes each; a checkpoint with a large vocabulary has a few million


@dataclass(frozen=True, slots=True)
class Global:
    """A class or a function, which is only named: `module` and `name` are what the pickle has there."""

    module: Any
    name: Any


@dataclass(frozen=True, slots=True)
class Reference:
    """Something outside of the pickle, such as a tensor's storage, by its identity."""

    identity: Any


@dataclass(slots=True, eq=False)
class PickledDict:
    """A dict, as pairs: what its keys are can't be trusted."""

    pairs: list[tuple[Any, Any]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Object:
    """An object that a call of `function` with `arguments` would make, and what is added to it afterwards."""

    function: Any
    arguments: Any
    state: Any = None
    items: list[Any] | None = None
    pairs: list[tuple[Any, Any]] | None = None


@dataclass(frozen=True)
class Pickle:
    """What a pickle holds.

    Parameters
    ----------
    value
        Its value: numbers, strings, lists (also for sets), tuples, and the classes of this module.
    references
        All references in it, in order.
    operations
        How many operations it took to make it.
    """

    value: Any
    references: list[Reference]
    operations: int


def read_pickle(file: Any) -> Pickle:
    """Read the pickle that begins where a file stands, and leave the file behind its end.

    Parameters
    ----------
    file
        Has ``read``, ``readline`` and ``tell``: a binary file, or a mapped one.

    Raises
    ------
    FileError
        If it has too many operations, or one that no pickle of a checkpoint has.
    Exception
        Whatever else is raised for bytes that are no pickle.

    Examples
    --------
    >>> import fractions, io, pickle
    >>> one, half = read_pickle(io.BytesIO(pickle.dumps([1, fractions.Fraction(1, 2)]))).value
    >>> one, half.function, half.arguments
    (1, Global(module='fractions', name='Fraction'), (1, 2))
    """
    machine = _Machine()
    operations = 0
    for operations, (opcode, argument, _) in enumerate(pickletools.genops(file), 1):
        if operations > _LONGEST:
            raise FileError(f"its pickle has more than {_LONGEST} operations")
        step = _STEPS.get(opcode.name)
        if step is not None:
            step(machine, argument)
        elif opcode.name in _CONSTANTS:
            machine.stack.append(argument)
        elif opcode.name not in ("PROTO", "FRAME", "STOP"):
            raise FileError(f"its pickle has an operation {opcode.name}, which no checkpoint has")
    return Pickle(machine.stack.pop(), machine.references, operations)


class _Machine:
    """The stack of a pickle, with marks, and what the pickle has remembered."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.references: list[Reference] = []

    def pop(self) -> Any:
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        begin = self.marks.pop()
        found = self.stack[begin:]
        del self.stack[begin:]
        return found

    def pop_or_unmark(self) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()

    def refer(self, identity: Any) -> None:
        self.references.append(Reference(identity))
        self.stack.append(self.references[-1])

    def call(self, arguments: Any) -> None:
        self.stack.append(Object(self.pop(), arguments))

    def call_with_names(self) -> None:
        names, arguments = self.pop(), self.pop()
        self.call((arguments, names))

    def call_marked(self) -> None:
        function, *arguments = self.pop_to_mark()
        self.stack.append(Object(function, tuple(arguments)))

    def name(self) -> None:
        name, module = self.pop(), self.pop()
        self.stack.append(Global(module, name))

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Object):
            target.items = target.items or []
            target = target.items
        if not isinstance(target, list):
            raise FileError(f"its pickle appends to a {type(target).__name__}")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, (Object, PickledDict)):
            raise FileError(f"its pickle sets items of a {type(target).__name__}")
        target.pairs = target.pairs or []
        target.pairs.extend(_paired(items))

    def build(self, state: Any) -> None:
        target = self.stack[-1]
        if not isinstance(target, Object):
            raise FileError(f"its pickle sets the state of a {type(target).__name__}")
        target.state = state


def _paired(items: list[Any]) -> list[tuple[Any, Any]]:
    return list(zip(items[::2], items[1::2], strict=True))


def _global(argument: str) -> Global:
    """A class or a function as `pickletools` gives it: module and name, with a space between them."""
    return Global(*argument.split(" ", 1))


_CONSTANTS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
"""The operations that push their argument."""

_STEPS: dict[str, Callable[[_Machine, Any], Any]] = {
    "NONE": lambda m, _: m.stack.append(None),
    "NEWTRUE": lambda m, _: m.stack.append(True),
    "NEWFALSE": lambda m, _: m.stack.append(False),
    "EMPTY_LIST": lambda m, _: m.stack.append([]),
    "EMPTY_SET": lambda m, _: m.stack.append([]),
    "EMPTY_TUPLE": lambda m, _: m.stack.append(()),
    "EMPTY_DICT": lambda m, _: m.stack.append(PickledDict()),
    "LIST": lambda m, _: m.stack.append(m.pop_to_mark()),
    "FROZENSET": lambda m, _: m.stack.append(m.pop_to_mark()),
    "TUPLE": lambda m, _: m.stack.append(tuple(m.pop_to_mark())),
    "TUPLE1": lambda m, _: m.stack.append((m.pop(),)),
    "TUPLE2": lambda m, _: m.stack.append((m.pop(), m.pop())[::-1]),
    "TUPLE3": lambda m, _: m.stack.append((m.pop(), m.pop(), m.pop())[::-1]),
    "DICT": lambda m, _: m.stack.append(PickledDict(_paired(m.pop_to_mark()))),
    "APPEND": lambda m, _: m.extend([m.pop()]),
    "APPENDS": lambda m, _: m.extend(m.pop_to_mark()),
    "ADDITEMS": lambda m, _: m.extend(m.pop_to_mark()),
    "SETITEM": lambda m, _: m.set_items([m.pop(), m.pop()][::-1]),
    "SETITEMS": lambda m, _: m.set_items(m.pop_to_mark()),
    "MARK": lambda m, _: m.marks.append(len(m.stack)),
    "POP": lambda m, _: m.pop_or_unmark(),
    "POP_MARK": lambda m, _: m.pop_to_mark(),
    "DUP": lambda m, _: m.stack.append(m.stack[-1]),
    "GET": lambda m, index: m.stack.append(m.memo[index]),
    "BINGET": lambda m, index: m.stack.append(m.memo[index]),
    "LONG_BINGET": lambda m, index: m.stack.append(m.memo[index]),
    "PUT": lambda m, index: m.memo.__setitem__(index, m.stack[-1]),
    "BINPUT": lambda m, index: m.memo.__setitem__(index, m.stack[-1]),
    "LONG_BINPUT": lambda m, index: m.memo.__setitem__(index, m.stack[-1]),
    "MEMOIZE": lambda m, _: m.memo.__setitem__(len(m.memo), m.stack[-1]),
    "GLOBAL": lambda m, argument: m.stack.append(_global(argument)),
    "STACK_GLOBAL": lambda m, _: m.name(),
    "PERSID": lambda m, identity: m.refer(identity),
    "BINPERSID": lambda m, _: m.refer(m.pop()),
    "REDUCE": lambda m, _: m.call(m.pop()),
    "NEWOBJ": lambda m, _: m.call(m.pop()),
    "NEWOBJ_EX": lambda m, _: m.call_with_names(),
    "OBJ": lambda m, _: m.call_marked(),
    "INST": lambda m, argument: m.stack.append(Object(_global(argument), tuple(m.pop_to_mark()))),
    "BUILD": lambda m, _: m.build(m.pop()),
}
"""What each other operation does."""
