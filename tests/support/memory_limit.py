"""A limit of the memory that Python allocates."""

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["limited_memory"]


@contextmanager
def limited_memory(limit: int = 4 << 20) -> Iterator[None]:
    """A context in which no more memory than this is in use at once, also if it ends by an error."""
    tracemalloc.start()
    try:
        yield
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < limit
