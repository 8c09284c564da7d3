"""Keeps Python's garbage collector from running while a graph is made.

A trace allocates hundreds of thousands of objects, and each full collection visits all of torch's and vLLM's: over a second each.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """While it is entered, nothing is collected; afterwards as before."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
