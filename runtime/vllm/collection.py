"""Garbage collection while an engine starts: it took a quarter of a second start, to walk again and again over the modules of torch and vLLM.

From the moment in which vLLM finds the plugin until it has a config nothing is collected. Then what is there is frozen: collections, those that
vLLM asks for as well, walk over what comes after it. Guaranteed: a process that asks for no engine collects again after a while; in a
process that is not vLLM's own, a user's, nothing stays frozen for longer than a start.
"""

from __future__ import annotations

import gc
import multiprocessing
import threading
from collections.abc import Callable

PAUSED = 20.0
"""Seconds after which a process collects again, whatever it does: importing vLLM takes less."""
FROZEN = 60.0
"""Seconds after which what a user's process had is looked at again."""

_timer: threading.Timer | None = None
_began = False


def pause() -> None:
    """Stops collections until `resume`, for PAUSED seconds at most; once in a process. One that has switched them off keeps that."""
    global _timer, _began
    if _began or not gc.isenabled():
        return
    _began = True
    gc.disable()
    _timer = _later(PAUSED, gc.enable)


def resume(*, own: bool) -> None:
    """Has the process collect again, if `pause` stopped it. own: whether the process is vLLM's, so that all that is there stays to its end."""
    global _timer
    timer, _timer = _timer, None
    if timer is None:
        return
    timer.cancel()
    if not gc.get_freeze_count():  # else the user has frozen things
        gc.freeze()
        if not own:
            _later(FROZEN, gc.unfreeze)
    gc.enable()


def freeze_here() -> None:
    """Freezes what a process that vLLM has started inherited, or imported again, and has it collect."""
    if multiprocessing.parent_process() is not None:
        resume(own=True)
        gc.freeze()


def _later(seconds: float, then: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(seconds, then)
    timer.daemon = True
    timer.start()
    return timer
