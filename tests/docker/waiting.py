"""How these tests wait, and how they say what took how long."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_PAUSE_SECONDS = 0.5

Say = Callable[[str], None]


def until(condition: Callable[[], bool], what: str, seconds: float) -> None:
    """Return once `condition` holds. Fails after `seconds`, saying `what` did not come."""
    deadline, never = time.monotonic() + seconds, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"not after {seconds:g} s: {what}"
        never.wait(_PAUSE_SECONDS)


@contextmanager
def timed(say: Say, what: str) -> Iterator[None]:
    """Say how many seconds `what` took."""
    begun = time.monotonic()
    try:
        yield
    finally:
        say(f"{time.monotonic() - begun:6.1f} s  {what}")
