"""A limit on the memory that Python allocates."""

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["limited_memory"]


@contextmanager
def limited_memory(limit: int = 4 << 20) -> Iterator[None]:
    """A context that fails if its peak memory is over the limit, also when it ends with an error."""
    tracemalloc.start()
    try:
        yield
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < limit
