"""A preset lies beneath what a person says, wherever that is said, and `settings` tells what is from where."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_stream.config import (
    SECTIONS,
    CodecSettings,
    FederationSettings,
    ServerOptimizerSettings,
    Settings,
    load,
    origins,
    settings_of,
    to_environment,
)
from llmos_stream.config.presets import PRESETS, PresetName
from llmos_stream.errors import ConfigError
from tests.cli.aids import Run
from tests.cli.fixtures import llmos

__all__ = ["llmos"]

SPARSELOCO = {"federation": {"preset": "sparseloco"}}


def test_every_preset_can_be_named_and_makes_sense() -> None:
    assert set(get_args(get_args(PresetName)[0])) == set(PRESETS)
    for name, values in PRESETS.items():
        settings = load({"federation": {"preset": name}})
        assert settings.federation.preset == name
        for section, fields in values.items():
            assert fields == {field: getattr(getattr(settings, section), field) for field in fields}
            assert fields.keys() <= SECTIONS[section].model_fields.keys()


def test_the_presets_are_those_of_the_papers() -> None:
    diloco, sparseloco = (load({"federation": {"preset": name}}) for name in ("diloco", "sparseloco"))
    assert diloco.codec.name == "float32"
    assert diloco.server_optimizer == ServerOptimizerSettings(lr=0.7, momentum=0.9, nesterov=True)
    codec = sparseloco.codec
    assert (codec.name, codec.chunk, codec.keep) == ("topk2", 4096, 64)
    assert (codec.error_feedback, codec.feedback_decay) == (True, 0.95)
    assert sparseloco.server_optimizer == ServerOptimizerSettings()


def test_the_presets_are_those_of_the_study() -> None:
    plain, *studied = (
        load({"federation": {"preset": name}} if name else {}) for name in ("", "devices", "silos", "llm")
    )
    devices, silos, llm = studied
    assert (devices.staleness.kind, devices.staleness.a) == ("polynomial", 0.25)
    assert devices.aggregation == plain.aggregation
    assert (silos.staleness.kind, silos.aggregation.buffer_size) == ("constant", 10)
    assert (llm.codec.name, llm.codec.chunk, llm.codec.keep, llm.codec.error_feedback) == ("topk2", 4096, 1024, True)
    assert (llm.staleness, llm.aggregation) == (plain.staleness, plain.aggregation)
    for settings in studied:
        assert settings.staleness.maximum == plain.staleness.maximum
        assert settings.server_optimizer == plain.server_optimizer


def test_what_is_said_anywhere_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "llmos.toml"
    file.write_text('[federation]\npreset = "sparseloco"\n[codec]\nkeep = 32\nchunk = 2048\n')
    monkeypatch.setenv("LLMOS_CODEC__KEEP", "16")
    defaults = {"codec": {"name": "int8", "feedback_decay": 0.5, "zstd_level": 3}}
    settings = load({"codec": {"error_feedback": "true"}}, file, defaults)
    codec = settings.codec
    assert (codec.name, codec.chunk, codec.keep, codec.feedback_decay) == ("topk2", 2048, 16, 0.95)
    assert codec.zstd_level == 3
    found = origins({"codec": {"error_feedback": "true"}}, file, defaults)
    assert {name: found[name] for name in found if name.startswith("codec.")} == {
        "codec.name": "preset",
        "codec.chunk": "file",
        "codec.keep": "variable",
        "codec.error_feedback": "flag",
        "codec.feedback_decay": "preset",
        "codec.zstd_level": "command",
    }
    assert found["federation.preset"] == "file"
    assert "client.lr" not in found


def test_another_rule_takes_none_of_the_presets_values() -> None:
    adam = load({"federation": {"preset": "diloco"}, "server_optimizer": {"name": "adam"}})
    assert adam.server_optimizer == ServerOptimizerSettings(name="adam")
    assert adam.codec.name == "float32"
    int8 = load(SPARSELOCO | {"codec": {"name": "int8"}})
    assert (int8.codec.name, int8.codec.feedback_decay) == ("int8", 1.0)
    same = load({"federation": {"preset": "diloco"}, "server_optimizer": {"name": "sgd", "lr": 1.0}})
    assert same.server_optimizer == ServerOptimizerSettings(lr=1.0, momentum=0.9, nesterov=True)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sparselocco", "there is no preset sparselocco; did you mean sparseloco?"),
        ("DiLoCo", "there is no preset DiLoCo; did you mean diloco?"),
        ("fast", "there is no preset fast; there are diloco, sparseloco, devices, silos, llm"),
    ],
)
def test_a_preset_that_there_is_not_is_named_with_what_was_meant(name: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load({"federation": {"preset": name}})
    assert str(caught.value) == f"federation.preset: {said}"


@pytest.mark.parametrize("bad", [7, ["sparseloco"], {"name": "diloco"}])
def test_what_is_no_name_is_no_preset(bad: Any) -> None:
    with pytest.raises(ConfigError, match=r"^federation\.preset: "):
        load({"federation": {"preset": bad}})


def test_a_section_given_wrongly_is_refused_as_without_a_preset() -> None:
    with pytest.raises(ConfigError, match="codec: this is a section"):
        load(SPARSELOCO | {"codec": "topk2"})


def test_a_program_gets_them_too() -> None:
    whole = Settings(federation=FederationSettings(preset="sparseloco"), codec=CodecSettings(keep=8))
    assert (whole.codec.name, whole.codec.keep, whole.codec.feedback_decay) == ("topk2", 8, 0.95)
    assert settings_of(whole, {"federation.name": "x"}).codec == whole.codec
    assert settings_of({"federation.preset": "diloco"}, {}).server_optimizer.nesterov
    assert settings_of(SPARSELOCO, {"codec.name": "int4"}).codec == CodecSettings(name="int4")


@given(st.sampled_from(sorted(PRESETS)), st.floats(0.1, 1.0), st.integers(1, 64))
def test_another_process_has_the_same(name: str, decay: float, keep: int) -> None:
    settings = load({"federation": {"preset": name}, "codec": {"feedback_decay": decay, "keep": keep}})
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in to_environment(settings).items():
            patch.setenv(variable, value)
        assert load() == settings


def test_the_table_of_settings_says_what_is_from_where(llmos: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOS_CODEC__ZSTD_LEVEL", "2")
    done = llmos("settings", "--preset", "sparseloco", "--codec.keep", "32")
    assert done.status == 0
    words = {line.split()[0]: line.split()[1:3] for line in done.out.splitlines() if line[:1].islower()}
    assert words["federation.preset"] == ["sparseloco", "(flag)"]
    assert words["codec.name"] == ["topk2", "(preset)"]
    assert words["codec.keep"] == ["32", "(flag)"]
    assert words["codec.zstd-level"] == ["2", "(variable)"]
    assert words["codec.block"] == ["512", "Elements"]
    assert re.search("did you mean diloco", llmos("settings", "--preset", "dilocco").error())
