"""Logs: lines for people, JSON for machines, nothing below the level."""

import io
import logging

import orjson
import pytest

from llmos_stream.config import RuntimeSettings
from llmos_stream.runtime import configure_logging
from llmos_stream.runtime.logs import LINES, Sparing, report_end
from llmos_stream.testing import ManualClock


def test_json_lines_hold_the_message_and_the_error() -> None:
    stream = io.StringIO()
    configure_logging(RuntimeSettings(log_json=True, log_level="info"), stream)
    log = logging.getLogger("llmos_stream.test")
    log.debug("not shown")
    try:
        raise ValueError("why")
    except ValueError:
        log.exception("version %d", 3)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1
    entry = orjson.loads(lines[0])
    assert (entry["level"], entry["message"], entry["logger"]) == ("error", "version 3", "llmos_stream.test")
    assert "ValueError: why" in entry["error"]


def test_lines_for_people() -> None:
    stream = io.StringIO()
    configure_logging(RuntimeSettings(), stream)
    logging.getLogger("llmos_stream.roles").warning("refused an update")
    assert stream.getvalue().rstrip().endswith("WARNING llmos_stream.roles: refused an update")


def test_the_last_line_has_the_form_of_the_logs(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    configure_logging(RuntimeSettings(log_json=True), stream)
    report_end("error: no")
    assert orjson.loads(stream.getvalue())["message"] == "error: no"
    configure_logging(RuntimeSettings(), stream)
    report_end("error: no")
    assert capsys.readouterr().err == "error: no\n"


def test_a_flood_of_lines_about_one_thing_hides_no_others(caplog: pytest.LogCaptureFixture) -> None:
    clock, logger = ManualClock(), logging.getLogger("llmos_stream.flooded")
    sparing = Sparing(clock)
    logger.addFilter(sparing)
    try:
        for number in range(1000):
            logger.warning("passed over record %d of %s", number, "a", extra={"about": "a"})
        logger.warning("passed over record %d of %s", 0, "b", extra={"about": "b"})
        assert len(caplog.messages) == LINES + 1
        assert caplog.messages[LINES - 1].endswith("(more like this is counted, and not shown for a minute)")
        assert caplog.messages[-1] == "passed over record 0 of b"
        clock.advance(61.0)
        logger.warning("passed over record %d of %s", 1001, "a", extra={"about": "a"})
        assert caplog.messages[-1] == "passed over record 1001 of a"
        for number in range(1000):
            logger.warning(f"made up {number}")
        assert len(sparing._said) <= 256
    finally:
        logger.removeFilter(sparing)
