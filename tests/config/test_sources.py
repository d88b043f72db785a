"""Where settings come from: variables that are empty, misspelt or somebody else's, files in odd encodings, and `~`."""

import logging
from pathlib import Path
from typing import Any

import pytest

from llmos_stream.config import SECTIONS, load, settings_of
from llmos_stream.errors import ConfigError


def _refused(overrides: dict[str, Any] | None = None, file: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(overrides, file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("text", ["", " ", "\t"])
def test_an_empty_variable_is_unset_whatever_the_setting(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    before = load().model_dump()
    for section, model in SECTIONS.items():
        for field in model.model_fields:
            monkeypatch.setenv(f"LLMOS_{section}__{field}".upper(), text)
    monkeypatch.setenv("LLMOS_CONFIG", text)
    assert load().model_dump() == before


def test_an_empty_text_is_unset_in_a_file_and_in_flags_too(tmp_path: Path) -> None:
    file = tmp_path / "llmos.toml"
    file.write_text('[client]\nstate_dir = ""\nid = "a"\n')
    settings = load({"client": {"id": ""}, "broker": {"bootstrap_servers": ""}}, file)
    assert (settings.client.state_dir, settings.client.id) == (None, "a")
    assert settings.broker.bootstrap_servers is None


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("LLMOS_CODECS__NAME", "LLMOS_CODEC__NAME"),
        ("LLMOS_CODEC_NAME", "LLMOS_CODEC__NAME"),
        ("llmos_codec_name", "LLMOS_CODEC__NAME"),
        ("LLMOS__CODEC__NAME", "LLMOS_CODEC__NAME"),
        ("LLMOS_CODEC.NAME", "LLMOS_CODEC__NAME"),
        ("LLMOS_BROKER_BOOTSTRAP_SERVERS", "LLMOS_BROKER__BOOTSTRAP_SERVERS"),
        ("LLMOS_BOOTSTRAP_SERVERS", "LLMOS_BROKER__BOOTSTRAP_SERVERS"),
        ("LLMOS_SERVER__OPTIMIZER__LR", "LLMOS_SERVER_OPTIMIZER__LR"),
        ("LLMOS_INFERENCE_PORT", "LLMOS_INFERENCE__PORT"),
        ("LLMOS_STREAM_CLIENT__ID", "LLMOS_CLIENT__ID"),
        ("LLM_OS_CLIENT__ID", "LLMOS_CLIENT__ID"),
        ("LMOS_CLIENT__ID", "LLMOS_CLIENT__ID"),
        ("LLMOS_CONFIGS", "LLMOS_CONFIG"),
    ],
)
def test_a_variable_that_is_none_names_the_one_that_was_meant(
    monkeypatch: pytest.MonkeyPatch, variable: str, meant: str
) -> None:
    monkeypatch.setenv(variable, "7")
    assert _refused() == f"{variable}: there is no such setting; did you mean {meant}?"


def test_a_misspelt_field_of_a_section_names_the_one_that_was_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOS_CODEC__NMAE", "int4")
    assert _refused() == "codec.nmae: there is no such setting; did you mean codec.name?"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("LLMOS_INFERENCE_SERVICE_HOST", "10.0.0.7"),
        ("LLMOS_INFERENCE_PORT", "tcp://10.0.0.7:8000"),
        ("LLMOS_INFERENCE_PORT_8000_TCP_ADDR", "10.0.0.7"),
        ("LLMOS_SERVICE_PORT_HTTP", "80"),
        ("LLMOS_PORT", "tcp://10.0.0.7:80"),
        ("LLMOS_IMAGE", "llmos-stream:dev"),
        ("LLMOS_TEST_BOOTSTRAP", "localhost:9092"),
        ("DEVICES_CLIENT__ID", "7"),
        ("MY_CODEC__NAME", "int4"),
    ],
)
def test_a_variable_of_somebody_else_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variable: str, value: str
) -> None:
    before = load().model_dump()
    monkeypatch.setenv(variable, value)
    assert load().model_dump() == before
    assert not caplog.records


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("LLMOS_SHOE_SIZE", "LLMOS_SHOE_SIZE is no setting and is not read; llmos-stream settings lists them"),
        ("CODEC__NAME", "CODEC__NAME is not read; did you mean LLMOS_CODEC__NAME?"),
    ],
)
def test_a_variable_that_may_be_meant_for_us_is_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variable: str, said: str
) -> None:
    monkeypatch.setenv(variable, "int4")
    with caplog.at_level(logging.WARNING):
        assert load().codec.name == "int8"
    assert caplog.messages == [said]


def test_a_whole_section_is_a_json_object(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOS_CODEC", '{"name": "topk", "fraction": 0.5}')
    monkeypatch.setenv("LLMOS_CODEC__FRACTION", "0.25")
    assert (load().codec.name, load().codec.fraction) == ("topk", 0.25)
    monkeypatch.setenv("LLMOS_CODEC", "topk")
    assert _refused() == "LLMOS_CODEC: a section is a JSON object; one of its settings is LLMOS_CODEC__NAME"


def test_an_option_may_have_a_variable_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOS_AGGREGATION__OPTIONS__BETA", "0.2")
    assert load().aggregation.options == {"beta": 0.2}  # as in name=value
    monkeypatch.setenv("LLMOS_AGGREGATION__OPTIONS", "beta=0.1")
    assert _refused().startswith("LLMOS_AGGREGATION__OPTIONS__BETA: ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[codecs]\nname = 'int4'", "codecs: there is no such setting; did you mean codec?"),
        ("[codec]\nzstd-levle = 3", "codec.zstd-levle: there is no such setting; did you mean codec.zstd_level?"),
        ("bootstrap_servers = 'a:1'", "bootstrap_servers: there is no such setting; did you mean broker.boot"),
        ("LLMOS_CODEC__NAME = 'int4'", "LLMOS_CODEC__NAME: there is no such setting; did you mean codec.name?"),
        ("[llmos.codec]\nname = 'int4'", "there is no section [llmos.codec]; did you mean [codec]?"),
        ("[tool.llmos.codec]\nname = 'int4'", "there is no section [tool.llmos.codec]; did you mean [codec]?"),
        ("codec = 'int4'", "codec: this is a section, which takes its settings by name"),
    ],
)
def test_a_misspelt_key_of_a_file_names_the_one_that_was_meant(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "llmos.toml"
    file.write_text(text)
    assert said in _refused(file=file)


def test_a_setting_may_be_named_with_a_dot(tmp_path: Path) -> None:
    file = tmp_path / "llmos.toml"
    file.write_text('"codec.name" = "int4"\ncodec.fraction = 0.5\n')
    settings = load({"codec.zstd_level": 3}, file)
    assert (settings.codec.name, settings.codec.fraction, settings.codec.zstd_level) == ("int4", 0.5, 3)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp437"])
def test_a_file_that_is_not_utf_8_is_refused_in_one_line(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "llmos.toml"
    file.write_bytes('[client]\nid = "Genève"\n'.encode(encoding))
    said = _refused(file=file)
    assert said.startswith(f"settings file {file} is not UTF-8")
    assert said.endswith("; save it as UTF-8")


def test_a_byte_order_mark_and_the_line_ends_of_windows_are_read_over(tmp_path: Path) -> None:
    file = tmp_path / "llmos.toml"
    file.write_bytes(b'\xef\xbb\xbf[codec]\r\nname = "int4"\r\n')
    assert load(file=file).codec.name == "int4"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = " + "[" * 5000 + "]" * 5000, "is nested too deeply"),
        ("a = " + "{a = " * 5000 + "1" + "}" * 5000, "is nested too deeply"),
        (f"[task]\nseed = {'9' * 5000}", "is not TOML: Exceeds the limit (4300 digits) for integer string conversion"),
        ('[codec]\rname = "int4"\r', "is not TOML: Expected newline"),
        ('[client]\nid = "\0"', "is not TOML: Found invalid character"),
    ],
)
def test_what_the_parser_of_toml_stumbles_over_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "llmos.toml"
    file.write_bytes(text.encode())
    # A parser that bounds the depth by itself says so as it says all else.
    assert _refused(file=file).startswith((f"settings file {file} {said}", f"settings file {file} is not TOML: "))


@pytest.mark.parametrize("name", ["Zürich-1", "\U0001f600", "a b", "a\r\nb", ".a", "x" * 129])
def test_a_name_that_none_can_have_is_told_what_a_name_is(name: str) -> None:
    for section, field in (("client", "id"), ("federation", "name")):
        said = f"{section}.{field}: 1 to 128 ASCII letters, digits, dots, underscores and hyphens; the first a letter"
        assert _refused({section: {field: name}}).startswith(said)


def test_a_folder_is_no_settings_file(tmp_path: Path) -> None:
    assert _refused(file=tmp_path) == f"settings file {tmp_path}: Is a directory"


def test_the_home_folder_is_meant_by_a_tilde_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "llmos.toml").write_text('[client]\nstate_dir = "~/state"\n[registry]\nurl = "file://~/models"\n')
    monkeypatch.setenv("LLMOS_CONFIG", "~/llmos.toml")
    monkeypatch.setenv("LLMOS_WIRE__SPOOL_DIR", "~")
    settings = load({"broker": dict.fromkeys(("ssl_cafile", "ssl_certfile", "ssl_keyfile"), "~/x.pem")})
    assert (settings.client.state_dir, settings.wire.spool_dir) == (tmp_path / "state", tmp_path)
    assert {settings.broker.ssl_cafile, settings.broker.ssl_certfile, settings.broker.ssl_keyfile} == {
        tmp_path / "x.pem"
    }
    assert settings.registry.url == f"file://{tmp_path}/models"
    assert load({"registry": {"url": "~/models"}}).registry.url == f"{tmp_path}/models"
    assert "home folder of ~nobody-here" in _refused({"client": {"state_dir": "~nobody-here/x"}})


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("a:1, b:2,", "a:1,b:2"),
        (["a:1", "b:2"], "a:1,b:2"),
        ("kafka", "kafka"),
        ("[::1]:9092", "[::1]:9092"),
        ("a.b-c_d:65535", "a.b-c_d:65535"),
        (",", None),
        (None, None),
    ],
)
def test_addresses_of_kafka(given: object, taken: str | None) -> None:
    assert load({"broker": {"bootstrap_servers": given}}).broker.bootstrap_servers == taken


@pytest.mark.parametrize(
    "given",
    [
        "localhost:abc",
        "localhost:0",
        "localhost:65536",
        "localhost:",
        "localhost:٣",
        ":9092",
        "http://localhost:9092",
        "kafka://localhost:9092",
        "::1",
        "[::1:9092",
        "a:1 b:2",
        "a..b:9092",
        "x" * 70 + ":9092",
        "a/b:9092",
        ["a:1", "b:x"],
    ],
)
def test_an_address_that_is_none_is_refused_in_one_line(given: object) -> None:
    assert _refused({"broker": {"bootstrap_servers": given}}).startswith("broker.bootstrap_servers: ")


def test_a_password_in_an_address_is_refused_and_not_shown() -> None:
    said = _refused({"broker": {"bootstrap_servers": "me:hunter2@host:9092"}})
    assert "broker.sasl_password" in said
    assert "hunter2" not in said


@pytest.mark.parametrize("section", ["operations", "inference", "dashboard"])
def test_a_host_to_listen_on_that_is_none_is_refused(section: str) -> None:
    assert "is no host name" in _refused({section: {"host": "http://0.0.0.0"}})


def test_settings_as_a_program_gives_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOS_FEDERATION__NAME", "ward")
    monkeypatch.setenv("LLMOS_CODEC__FRACTION", "0.5")
    file = tmp_path / "llmos.toml"
    file.write_text('[codec]\nname = "int4"\n')
    for given in ({"codec": {"name": "int4"}}, {"codec.name": "int4"}, file, str(file)):
        settings = settings_of(given, {"federation.name": None, "broker.bootstrap_servers": ["a:1", "b:2"]})
        assert (settings.federation.name, settings.broker.bootstrap_servers) == ("ward", "a:1,b:2")
        assert (settings.codec.name, settings.codec.fraction) == ("int4", 0.5)
    whole = load({"codec": {"name": "topk"}})
    assert settings_of(whole, {"federation.name": None}) is whole
    monkeypatch.setenv("LLMOS_CODEC__FRACTION", "0.25")  # comes too late
    other = settings_of(whole, {"federation.name": "x"})
    assert (other.federation.name, other.codec) == ("x", whole.codec)
    assert other.codec.model_fields_set == whole.codec.model_fields_set
    assert settings_of(None, {"federation.name": "x"}).federation.name == "x"


@pytest.mark.parametrize(
    ("given", "named", "said"),
    [
        ({"broker": "a:1"}, {}, "broker: this is a section, which takes its settings by name"),
        ({"codecs": {}}, {}, "codecs: there is no such setting; did you mean codec?"),
        ("nowhere.toml", {}, "settings file nowhere.toml does not exist"),
        ("~nobody-here/x.toml", {}, "settings file ~nobody-here/x.toml: nobody here knows the home folder of ~nobody"),
        (7, {}, "settings: a mapping, a file or Settings, not int"),
        (None, {"federation.name": "a b"}, "federation.name: "),
        (load(), {"broker.bootstrap_servers": "a:b"}, "broker.bootstrap_servers: "),
    ],
)
def test_what_a_program_gives_wrong_is_one_line(given: Any, named: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings_of(given, named)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)
