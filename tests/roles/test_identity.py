"""A client's name and folder where nobody has set them."""

import socket
from pathlib import Path

import pytest

from llmos_stream.config import ClientSettings
from llmos_stream.errors import ConfigError
from llmos_stream.roles.client import client_id_of, state_folder


@pytest.mark.parametrize(
    "host",
    [
        "ward-7",
        "ward_7.example.org",
        "Büro",
        "计算机",
        "",
        "-",
        "...",
        "my host",
        "a/b",
        "x" * 300,
        "ﬁ",
        "٣",
        "ward:7",
        "\udcff",
    ],
)
def test_the_name_made_of_a_host_is_one_that_the_settings_allow(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    name = client_id_of(ClientSettings(shard=7))
    assert ClientSettings(id=name).id == name
    assert name.endswith("-7")
    assert (name == f"{host}-7") == (host in {"ward-7", "ward_7.example.org"})


def test_hosts_that_differ_have_names_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    names = set()
    for host in ("Ä", "Ö", "计", "x" * 90, "x" * 91):
        monkeypatch.setattr(socket, "gethostname", lambda host=host: host)
        names.add(client_id_of(ClientSettings()))
    assert len(names) == 5


def test_nobody_needs_a_home_folder_who_has_a_state_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As a container has it under a user id that nobody knows."""

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert state_folder(ClientSettings(state_dir=tmp_path), "f", "a") == tmp_path
    with pytest.raises(ConfigError, match=r"client\.state_dir: this user has no home folder"):
        state_folder(ClientSettings(), "f", "a")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_folder(ClientSettings(), "f", "a") == tmp_path / "llmos-stream" / "f" / "a"
