"""Who a client is, and where it keeps what it must not forget."""

import os
import re
import socket
from hashlib import sha256
from pathlib import Path

from llmos_stream.config import ClientSettings
from llmos_stream.errors import ConfigError


def client_id_of(client: ClientSettings) -> str:
    """The client's name: as set, or made of this host's and the shard's."""
    return client.id or f"{_host(socket.gethostname())}-{client.shard}"


def _host(name: str) -> str:
    """A host's name within the rule for names. One that had to be changed has a digest, so that two differ still."""
    fit = re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip("._-")[:80]
    return fit if fit and fit == name else f"{fit or 'client'}-{sha256(name.encode(errors='replace')).hexdigest()[:8]}"


def state_folder(client: ClientSettings, federation: str, client_id: str) -> Path:
    """Where the client keeps its state: as set, or a folder of its own in the user's state folder.

    Raises:
        ConfigError: It is not set, and the user has no home folder, as in a container under an arbitrary user id.
    """
    if client.state_dir is not None:
        return client.state_dir
    base = os.environ.get("XDG_STATE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".local" / "state") / "llmos-stream" / federation / client_id
    except RuntimeError:
        raise ConfigError("client.state_dir: this user has no home folder; set it to a folder that lasts") from None
