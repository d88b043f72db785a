"""Settings: where they come from, what is refused, and what is said about it."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from llmos_stream.config import SECTIONS, Settings, load, to_environment
from llmos_stream.errors import ConfigError


def test_flags_win_over_environment_over_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "llmos.toml"
    file.write_text('[codec]\nname = "topk"\nfraction = 0.5\nzstd_level = 7\n')
    monkeypatch.setenv("LLMOS_CODEC__FRACTION", "0.25")
    monkeypatch.setenv("LLMOS_CODEC__ZSTD_LEVEL", "5")
    settings = load({"codec": {"zstd_level": 3}}, file)
    assert (settings.codec.name, settings.codec.fraction, settings.codec.zstd_level) == ("topk", 0.25, 3)


def test_the_file_may_be_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "llmos.toml"
    file.write_text('[federation]\nname = "ward"\n')
    monkeypatch.setenv("LLMOS_CONFIG", str(file))
    assert load().federation.name == "ward"


@pytest.mark.parametrize(
    ("section", "field", "value", "reason"),
    [
        ("codec", "fraction", 0, "greater than 0"),
        ("codec", "block", 100, "power of two"),
        ("codec", "name", "int", "did you mean int8"),
        ("aggregation", "buffer_size", 0, "greater than or equal to 1"),
        ("aggregation", "mixing", 1.5, "less than or equal to 1"),
        ("aggregation", "deadline_seconds", "soon", "valid number"),
        ("staleness", "a", -1, "greater than 0"),
        ("wire", "chunk_bytes", 2_000_000, "less than or equal to 1000000"),
        ("federation", "name", "a/b", "letters, digits"),
        ("client", "id", "../x", "letters, digits"),
        ("client", "lr", "nan", "finite"),
        ("stop", "target", "inf", "finite"),
        ("runtime", "workers", 0, "greater than or equal to 1"),
    ],
)
def test_a_wrong_value_names_the_field_and_the_reason(section: str, field: str, value: object, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load({section: {field: value}})
    assert str(caught.value).startswith(f"{section}.{field}: ")
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"aggregation": {"strategy": "fedasync"}, "server_optimizer": {"name": "adam"}}, "server_optimizer: fedasync"),
        ({"server_optimizer": {"name": "yogi", "momentum": 0.9}}, "server_optimizer.momentum: only sgd"),
        ({"server_optimizer": {"nesterov": True}}, "server_optimizer.nesterov: it is a kind of momentum of sgd"),
        ({"codec": {"feedback_decay": 0}}, "codec.feedback_decay"),
        ({"client": {"shard": 8}}, "client.shard: 8 is not one of task.shards"),
        ({"broker": {"security_protocol": "SASL_SSL"}}, "needs sasl_username and sasl_password"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(overrides)


def test_every_wrong_field_is_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load({"codec": {"fraction": 2}, "client": {"epochs": 0}, "nonsense": {}})
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == ["codec.fraction", "client.epochs", "nonsense"]


def test_an_unknown_field_in_the_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "llmos.toml"
    file.write_text("[codec]\nlevel = 3\n")
    with pytest.raises(ConfigError, match=r"codec\.level: there is no such setting; did you mean codec\.zstd_level\?"):
        load(file=file)


@pytest.mark.parametrize(("text", "message"), [("[codec", "not TOML"), (None, "does not exist")])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "llmos.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(file=file)


def test_a_secret_is_in_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOS_BROKER__SASL_PASSWORD", "hunter2")
    settings = load({"broker": {"sasl_username": "me"}})
    assert isinstance(settings.broker.sasl_password, SecretStr)
    assert "hunter2" not in repr(settings) + str(settings.model_dump(mode="json")) + str(to_environment(settings))
    with pytest.raises(ConfigError) as caught:
        load({"broker": {"sasl_mechanism": "hunter2"}})
    assert "hunter2" not in str(caught.value)


def test_another_process_gets_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(
        {
            "codec": {"name": "topk", "fraction": 0.01, "error_feedback": False},
            "stop": {"target": 0.5},
            "client": {"id": "a", "state_dir": "/tmp/x", "shard": 3},  # noqa: S108
        }
    )
    for name, value in to_environment(settings).items():
        monkeypatch.setenv(name, value)
    again = load()
    assert again.model_dump() == settings.model_dump()


def test_every_setting_says_what_it_does() -> None:
    for name, section in SECTIONS.items():
        for field, info in section.model_fields.items():
            assert info.description, f"{name}.{field}"
            assert info.description.rstrip().endswith("."), f"{name}.{field}"


def test_no_setting_takes_an_integer_that_nothing_can_count() -> None:
    unbounded = [
        f"{name}.{field}"
        for name, section in SECTIONS.items()
        for field, schema in section.model_json_schema()["properties"].items()
        for one in schema.get("anyOf", [schema])
        if one.get("type") == "integer" and not {"maximum", "exclusiveMaximum"} & one.keys()
    ]
    assert not unbounded
    with pytest.raises(ConfigError, match=r"client\.epochs.*9223372036854775807"):
        load({"client": {"epochs": 10**22}})


def test_settings_do_not_change_during_a_run() -> None:
    settings = Settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.codec.name = "int4"


@pytest.mark.parametrize("host", ["[::1", "x" * 300, "a..b", "a b", "[]", "[localhost]"])
def test_a_host_that_is_none_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match=r"operations\.host"):
        load({"operations": {"host": host}})
