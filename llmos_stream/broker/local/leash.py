"""A child process that does not outlive this one, however this one ends."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from typing import IO

_GRACE_SECONDS = 20

# The shell's standard input is a pipe that only we hold the other end of: it closes when we end or say so.
_SCRIPT = f"""
exec 3<&0 </dev/null
"$@" 3<&- &
child=$!
{{ cat <&3; kill "$child"; sleep {_GRACE_SECONDS}; kill -9 "$child"; }} >/dev/null 2>&1 &
watch=$!
exec 3<&- 2>/dev/null
wait "$child"
code=$?
kill "$watch"
exit "$code"
"""


class Leashed:
    """A running command. SIGTERM reaches it when this process ends in any way, SIGKILL 20 s later."""

    def __init__(self, command: Sequence[str], output: IO[bytes]) -> None:
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT, "leash", *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # an interrupt at the terminal is for us to pass on
        )

    @property
    def running(self) -> bool:
        return self._shell.poll() is None

    def end(self, seconds: float) -> bool:
        """SIGTERM, then SIGKILL once `seconds` have passed; 0 kills at once. Whether it ended by itself."""
        by_itself = False
        if self._shell.stdin is not None and seconds > 0:
            self._shell.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._shell.wait(seconds)
                by_itself = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._shell.pid, signal.SIGKILL)  # sweeps up the watch as well
        self._shell.wait()
        if self._shell.stdin is not None:
            self._shell.stdin.close()
        return by_itself
