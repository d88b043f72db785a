"""`task.options` and `client.data`: from a file, the environment and flags, and never shown with a password."""

import json
from pathlib import Path
from typing import Any

import pytest

from llmos_stream.config import Settings, load, redacted, to_environment
from llmos_stream.errors import ConfigError
from tests.cli.fixtures import llmos

__all__ = ["llmos"]

_DSN = "postgresql://ward:geheim@db:5432/wards?sslmode=require&password=ebenso"


def test_options_are_a_table_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "llmos.toml"
    file.write_text('[task.options]\nfeatures = ["age", "pulse"]\nhidden = 32\n[task.options.client]\nname = "x"\n')
    options = load(file=file).task.options
    assert options == {"features": ["age", "pulse"], "hidden": 32, "client": {"name": "x"}}


def test_options_are_variables_and_flags_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOS_TASK__OPTIONS__HIDDEN", "32")
    monkeypatch.setenv("LLMOS_TASK__OPTIONS__NAME", "north ward")
    assert load().task.options == {"hidden": 32, "name": "north ward"}
    assert load({"task": {"options": "hidden=64,name=south"}}).task.options == {"hidden": 64, "name": "south"}


def test_an_option_that_is_no_json_is_named(tmp_path: Path) -> None:
    file = tmp_path / "llmos.toml"
    file.write_text("[task.options]\nsince = 2024-01-01\n")
    with pytest.raises(ConfigError, match=r"^task\.options\.since.*JSON"):
        load(file=file)


def test_another_process_gets_both_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    given = load({"task": {"options": {"a": [1, "b"]}}, "client": {"data": _DSN}})
    for name, value in to_environment(given).items():
        monkeypatch.setenv(name, value)
    assert load() == given


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (_DSN, "postgresql://***@db:5432/wards?sslmode=require&password=***"),
        ("s3://bucket/wards.csv", "s3://bucket/wards.csv"),
        ("https://token@host/x", "https://***@host/x"),
        ("mysql:/u:p/a@ss@host/db", "mysql:/***@host/db"),
        ("host=db user=ward password='ge heim' dbname=w", "host=db user=ward password=*** dbname=w"),
        ("https://h/x.csv?sig=abc%3D&se=2026", "https://h/x.csv?sig=***&se=2026"),
        ("Server=db;Pwd=geheim;Database=w", "Server=db;Pwd=***;Database=w"),
        ("two a://u:p@h and b://u:p@h", "two a://***@h and b://***@h"),
        ("data/wards.csv", "data/wards.csv"),
    ],
)
def test_what_may_be_a_secret_is_left_out(text: str, shown: str) -> None:
    assert redacted(text) == shown


def test_settings_show_data_without_the_password(llmos: Any) -> None:
    for flags in ((), ("--json",)):
        done = llmos("settings", "--client.data", _DSN, *flags)
        assert done.status == 0
        assert "db:5432/wards" in done.out.replace("\n", "").replace(" ", "")
        assert not [word for word in ("geheim", "ebenso") if word in done.out + done.err]
    given = load({"client": {"data": _DSN}})
    assert "geheim" not in repr(given) + str(given) + json.dumps(given.model_dump(mode="json"))
    assert Settings.model_validate(given.model_dump()).client.data == _DSN
