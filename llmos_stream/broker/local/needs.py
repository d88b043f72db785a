"""What this machine must have for a local Kafka."""

import contextlib
import os
import random
import re
import shutil
import socket
import subprocess

from llmos_stream.broker.local import jars
from llmos_stream.errors import BrokerError

_JAVA = 17
_PORTS = range(20_000, 32_000)  # below the ports that systems give to clients, one of which could take it meanwhile
_REMEDY = "install Java 17 and Maven, or set LLMOS_BROKER__BOOTSTRAP_SERVERS to a Kafka of yours"


def missing() -> str | None:
    """Why a local Kafka cannot run here, or None when it can."""
    if os.name != "posix":
        return f"a local Kafka needs Linux or macOS; {_REMEDY}"
    if (version := _java_version()) < _JAVA:
        found = f"Java {version} is too old" if version else "Java is not installed"
        return f"{found}; {_REMEDY}"
    if not jars.fetched() and shutil.which("mvn") is None:
        return f"Maven is not installed, and Kafka has not been fetched before; {_REMEDY}"
    return None


def free_ports(count: int) -> list[int]:
    """Different ports on loopback that nobody listens on. Raises BrokerError when there are not so many."""
    found: list[int] = []
    with contextlib.ExitStack() as held:
        for port in random.sample(_PORTS, len(_PORTS)):
            probe = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                found.append(port)
            if len(found) == count:
                return found
    raise BrokerError(f"fewer than {count} free ports between {_PORTS.start} and {_PORTS.stop}")


def _java_version() -> int:
    """The major version of the java on the path, 0 when there is none that runs."""
    try:
        said = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr  # noqa: S607
    except OSError:
        return 0
    found = re.search(r'version "(?:1\.)?(\d+)', said)
    return int(found.group(1)) if found else 0
