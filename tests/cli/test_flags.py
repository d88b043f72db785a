"""Settings on the command line: a flag each, what wins over what, and what is said about a mistake."""

import argparse
import re
from pathlib import Path
from typing import Any

import pytest

from llmos_stream.cli.flags import Setting, add_settings, given_settings, settings_of
from llmos_stream.cli.main import main
from llmos_stream.config import SECTIONS, Settings, load
from llmos_stream.config.presets import PRESETS
from tests.cli.aids import Run


def _another_value(setting: Setting, present: Any) -> str:
    """A value that the setting may have and does not have by default."""
    if setting.field == "security_protocol":
        return "SSL"  # the next one needs a password
    if setting.name == "deploy.urls":
        return "http://gpu1:8000"
    if setting.field == "endpoint":
        return "http://collector:4318/v1/traces"
    if setting.kind == "NAME=VALUE,...":
        return '{"a": 1}'
    if "|" in setting.kind:
        return next(choice for choice in setting.kind.split("|") if choice.lower() != str(present).lower())
    if setting.kind == "INT":
        return str(3 if present is None else present + 1 if present < 100 else present // 2)
    if setting.kind == "NUMBER":
        return str(present / 2 if present else 0.5)
    return "other"


NEEDED = {
    "aggregation.fragments": ("--aggregation.buffer-size", "3"),
    "aggregation.quorum": ("--aggregation.buffer-size", "3"),
    "aggregation.strategy": ("--aggregation.buffer-size", "3"),
    "server_optimizer.nesterov": ("--server-optimizer.momentum", "0.5"),
}
"""What has to be said with a setting."""


def _flat(settings: dict[str, dict[str, Any]]) -> dict[tuple[str, str], Any]:
    return {(section, field): value for section, fields in settings.items() for field, value in fields.items()}


@pytest.mark.parametrize("section", SECTIONS)
def test_each_setting_has_a_flag_that_sets_it_and_nothing_else(llmos: Run, section: str) -> None:
    plain = _flat(llmos("settings", "--json").json())
    for setting in settings_of([section]):
        needed = NEEDED.get(setting.name, ())
        before = _flat(llmos("settings", "--json", *needed).json()) if needed else plain
        value = _another_value(setting, before[section, setting.field])
        done = llmos("settings", "--json", setting.flag, value, *needed)
        if setting.secret:
            assert done.status == 2
            assert f"{setting.flag} ***; a secret has no flag: set {setting.variable}" in done.error()
        else:
            changed = {name: value for name, value in _flat(done.json()).items() if value != before[name]}
            preset = PRESETS.get(value, {}) if setting.name == "federation.preset" else {}
            also = {(other, field) for other, fields in preset.items() for field in fields}
            assert {(section, setting.field)} <= changed.keys() <= {(section, setting.field)} | also
            assert str(changed[section, setting.field]).replace("'", '"').lower() == value.lower()


def test_a_secret_is_taken_from_the_environment_and_not_shown(llmos: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOS_BROKER__SASL_PASSWORD", "hunter2")
    for form in ([], ["--json"]):
        done = llmos("settings", *form)
        assert done.status == 0
        assert "****" in done.out
        assert "hunter2" not in done.out + done.err


def _loaded(*flags: str) -> Settings:
    own: dict[str, dict[str, Any]] = {"stop": {"target": 0.97, "patience": 150}, "codec": {"name": "int4"}}
    parser = argparse.ArgumentParser()
    add_settings(parser, ("stop", "codec"), own)
    assert "(default: 0.97)" in " ".join(parser.format_help().split())
    arguments = parser.parse_args(flags)
    return load(given_settings(arguments), arguments.config, own)


def test_flags_before_environment_before_file_before_a_commands_own_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (_loaded().stop.target, _loaded().stop.patience, _loaded().codec.name) == (0.97, 150, "int4")
    file = tmp_path / "llmos.toml"
    file.write_text("[stop]\ntarget = 0.5\nmax_versions = 7\n")
    settings = _loaded("--config", str(file))
    assert (settings.stop.target, settings.stop.patience, settings.stop.max_versions) == (0.5, 150, 7)
    monkeypatch.setenv("LLMOS_STOP__TARGET", "0.6")
    settings = _loaded("--config", str(file))
    assert (settings.stop.target, settings.stop.max_versions) == (0.6, 7)
    settings = _loaded("--config", str(file), "--stop.target", "0.7", "--codec.name", "topk")
    assert (settings.stop.target, settings.stop.patience, settings.codec.name) == (0.7, 150, "topk")


def test_none_unsets_what_may_be_unset(monkeypatch: pytest.MonkeyPatch, llmos: Run) -> None:
    assert _loaded("--stop.target", "none").stop.target is None
    assert _loaded("--stop.patience", "None").stop.patience is None
    monkeypatch.setenv("LLMOS_STOP__TARGET", "0.6")
    assert _loaded("--stop.target", "none").stop.target is None
    assert llmos("settings", "--codec.name", "none").error().startswith("codec.name: ")


def test_a_flag_may_be_written_with_underscores_as_in_files(llmos: Run) -> None:
    for flags in (["--aggregation.buffer_size", "7"], ["--aggregation.buffer_size=7"]):
        assert llmos("settings", "--json", *flags).json()["aggregation"]["buffer_size"] == 7


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["settings", "--codec.block", "100"], "codec.block: 100 is not a power of two"),
        (["topics", "list", "--federation.name", "a/b"], "federation.name: "),
        (["client", "--client.lr", "fast"], "client.lr: "),
        (["client", "--client.shard", "8"], "client.shard: 8 is not one of task.shards"),
        (["aggregator", "--stop.max-versions", "0"], "stop.max_versions: "),
        (["demo", "--codec.fraction", "2"], "codec.fraction: "),
        (["demo", "--clients", "0"], "--clients: 0 is not at least 1"),
        (["demo", "--clients", "few"], "argument --clients: invalid int value: 'few'"),
        (["settings", "--config", "nowhere.toml"], "settings file nowhere.toml does not exist"),
        (["settings", "--codec.nmae", "int8"], "unrecognized arguments: --codec.nmae int8; did you mean --codec.name?"),
        (["evaluate", "--codec.name", "int8"], "unrecognized arguments: --codec.name int8; evaluate does not use it"),
        (["client", "--bootstrap-servers", "a:1"], "unrecognized arguments: --bootstrap-servers a:1; did you mean --b"),
        (["client", "--codec-name=int4"], "unrecognized arguments: --codec-name=int4; did you mean --codec.name?"),
        (["client", "--CODEC.NAME=int4"], "unrecognized arguments: --CODEC.NAME=int4; did you mean --codec.name?"),
        (["client", "--broker.pasword", "hunter2"], "unrecognized arguments: --broker.pasword *** (see"),
        (["client", "--broker.sasl-pass=hunter2"], "unrecognized arguments: --broker.sasl-pass=***"),
        (
            ["client", "--client.dta", "pg://me:pw@db/x"],
            "unrecognized arguments: --client.dta pg://***@db/x; did you m",
        ),
        (["replay", "--witout", "a"], "unrecognized arguments: --witout; did you mean --without?"),
        (["topics", "lsit"], "argument action: invalid choice: 'lsit'; did you mean list?"),
        (["topics", "frobnicate"], "argument action: invalid choice: 'frobnicate' (choose from create, "),
        (["topcis"], "argument COMMAND: invalid choice: 'topcis'; did you mean topics?"),
        (["evaluator"], "argument COMMAND: invalid choice: 'evaluator'; did you mean evaluate?"),
        (["--federation.name", "a", "client"], "a command comes before its flags: llmos-stream COMMAND --f"),
        ([], "the following arguments are required: COMMAND"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_ends_with_status_2_and_one_line_that_names_it(llmos: Run, flags: list[str], said: str) -> None:
    done = llmos(*flags)
    assert done.status == 2
    assert done.error().startswith(said)


def test_an_unknown_flag_points_to_the_help_of_its_command(llmos: Run) -> None:
    assert llmos("client", "--nope").error().endswith("(see llmos-stream client --help)")


def test_a_mistake_in_the_file_is_named_like_the_setting(llmos: Run, tmp_path: Path) -> None:
    file = tmp_path / "llmos.toml"
    file.write_text('[codec]\nnmae = "int8"\n')
    assert llmos("settings", "--config", file).error().startswith("codec.nmae: ")
    file.write_text("[codec")
    assert "is not TOML" in llmos("settings", "--config", file).error()


@pytest.mark.parametrize("to", ["pipe", "terminal"])
def test_the_table_of_settings_cuts_nothing_off(llmos: Run, monkeypatch: pytest.MonkeyPatch, to: str) -> None:
    if to == "terminal":
        monkeypatch.setenv("FORCE_COLOR", "1")
    done = llmos("settings", "--topics.updates-partitions", "5")
    assert done.status == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", done.out).splitlines()
    assert "…" not in done.out
    if to == "terminal":
        assert max(map(len, lines)) <= 80
    else:
        assert len(lines) == 5 + len(list(settings_of()))  # three lines of how to set one, an empty one, and the head
    words = {line.split()[0]: line.split()[1] for line in lines if line[:1].islower()}
    assert words["topics.updates-partitions"] == "5"
    assert words["stop.target"] == "unset"
    assert words.keys() >= {setting.flag.removeprefix("--") for setting in settings_of()}


def test_every_section_is_a_flag_of_the_role_that_reads_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Each section of the settings can be given by a flag of some command."""
    found = set()
    for command in ("aggregator", "archive", "client", "deploy", "evaluate", "monitor", "serve", "topics"):
        with pytest.raises(SystemExit):
            main([command, "--help-all"])
        found |= set(re.findall(r"--([a-z-]+)\.[a-z-]+", capsys.readouterr().out))
    assert {section.replace("_", "-") for section in SECTIONS} <= found
