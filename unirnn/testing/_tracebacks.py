"""Which frames pytest leaves out of a traceback."""

from typing import Any

from unirnn.errors import UnirnnError

__all__ = ["is_for_the_test"]


def is_for_the_test(caught: Any) -> bool:
    """Whether the message of an error or a skip is enough; then pytest shows the line of the test, not the kit's code.

    Modules have it as ``__tracebackhide__``. Any other error is shown where it was raised.
    """
    import pytest  # only pytest calls this

    return isinstance(caught.value, (AssertionError, UnirnnError, pytest.skip.Exception))
