"""Decide which frames pytest hides in a traceback."""

from typing import Any

from unirnn.errors import UnirnnError

__all__ = ["is_for_the_test"]


def is_for_the_test(caught: Any) -> bool:
    """Whether pytest shows the line of the test that failed, instead of the code of the kit that raised an error.

    This is so for errors and skips whose messages are enough. Modules of the kit have this function as
    ``__tracebackhide__``.
    """
    import pytest  # only pytest calls this

    return isinstance(caught.value, (AssertionError, UnirnnError, pytest.skip.Exception))
