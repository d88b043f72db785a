"""Who a client is, and where it keeps what it must not forget."""

import os
import socket
from pathlib import Path

from llmos_stream.config import ClientSettings


def client_id_of(client: ClientSettings) -> str:
    """The client's name: as set, or made of this host's and the shard's."""
    host = "".join(c if c.isalnum() or c in "._-" else "-" for c in socket.gethostname()).lstrip("._-") or "client"
    return client.id or f"{host[:100]}-{client.shard}"


def state_folder(client: ClientSettings, federation: str, client_id: str) -> Path:
    """Where the client keeps its state: as set, or a folder of its own in the user's state folder."""
    base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return client.state_dir or base / "llmos-stream" / federation / client_id
