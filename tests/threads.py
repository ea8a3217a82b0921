"""Threads that a test may not leave behind."""

from __future__ import annotations

import sys
import threading
import time
import traceback

PATIENCE_S = 60.0
"""Far more than a loaded machine needs; a leak lasts for ever."""


def assert_none_left(prefix: str = "kstream") -> None:
    """Wait for threads of this name; those that stay are told with what they are at."""
    deadline = time.monotonic() + PATIENCE_S
    left = [thread for thread in threading.enumerate() if thread.name.startswith(prefix)]
    for thread in left:
        thread.join(max(0.0, deadline - time.monotonic()))
    stuck = [_at(thread) for thread in left if thread.is_alive()]
    assert not stuck, "\n".join(stuck)


def _at(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    return f"{thread.name}\n{''.join(traceback.format_stack(frame)) if frame else ''}"
