import io

import pytest
from rich.cells import cell_len
from rich.console import Console, RenderableType

from llmos_stream.reporting import History, final_table, line, render
from llmos_stream.reporting.wording import duration, natural, number, plain, short_duration, size, sparkline
from llmos_stream.types import Event, EventKind
from tests.reporting.fake import START_MS, Federation


def shown(renderable: RenderableType, width: int = 80) -> list[str]:
    """Lines as a terminal without colours has them."""
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=True, color_system=None, legacy_windows=False).print(renderable)
    return [row.rstrip() for row in out.getvalue().splitlines()]


def live(history: History, now_ms: int | None = None, width: int = 80) -> list[str]:
    return shown(render(history, title="digits", now_ms=now_ms or history.end_ms or 0), width)


def part(count: int, clients: int = 8) -> History:
    history = History()
    for event in Federation(clients).events[:count]:
        history.add(event)
    return history


def test_the_display_fits_80_columns() -> None:
    rows = live(part(300))
    assert max(cell_len(row) for row in rows) <= 80
    assert len(rows) == 1 + 1 + (1 + 8) + 1
    assert rows[1].startswith("version 27  accuracy 0.9")
    assert all(word in rows[1] for word in ("updates/s", "staleness 1.3", "74 % saved"))
    assert any(block in rows[1] for block in "▁▂▃▄▅▆▇█")
    assert rows[-1].startswith("108 folded, 3 duplicates, 7 refused (not_finite 6), 30.")


def test_each_client_has_its_numbers_and_a_word_for_its_state() -> None:
    history = part(300)
    table = {row.split()[0]: row for row in live(history)[3:-1]}
    for row in history.rows(history.end_ms):
        text = table[row.client.client_id]
        assert text.split()[1:3] == [str(row.client.num_examples), str(row.client.folded)]
        assert f"{row.client.staleness.value:.1f}/{row.client.last_staleness}" in text
        assert f"{100 * row.share:.0f} %" in text
        assert text.endswith(row.state)
    assert table["client-7"].endswith("slow")
    assert table["client-4"].endswith("left")
    assert list(table) == sorted(table, key=natural)


def test_silent_clients_turn_late_as_time_passes() -> None:
    history = part(300)
    now = (history.end_ms or 0) + 60_000
    assert sum(row.endswith("late") for row in live(history, now)) == 7
    assert "0 updates/s" in live(history, now)[1]


def test_many_clients_degrade_to_the_largest_and_a_count() -> None:
    history = part(3000, clients=104)
    rows = live(history)
    assert max(cell_len(row) for row in rows) <= 80
    names = [row.split()[0] for row in rows if row.startswith("client-")]
    assert set(names) == {row.client.client_id for row in history.rows()[:12]}
    assert any(row.startswith("… and 92 more") for row in rows)
    assert len(shown(render(history, title="t", now_ms=0, rows=104))) == 104 + 5


def test_a_finished_run_says_so() -> None:
    history = Federation().history()
    rows = live(history, (history.end_ms or 0) + 10**9)
    assert rows[-2] == "finished: target"
    assert sum(row.endswith("done") for row in rows) == 6
    assert not any(row.endswith("late") for row in rows)


def test_before_anything_happened() -> None:
    assert live(History())[1:3] == ["version -  0 updates/s  staleness -", "waiting for the first client"]
    assert line(History()) == "version -  updates 0 (0.0/s)  clients 0"
    assert any("broadcast" in row for row in shown(final_table(History())))


def test_the_line_is_one_line_of_ascii_with_the_state() -> None:
    said = line(part(300))
    assert said.isascii()
    assert "\n" not in said
    assert said.startswith("version 27  accuracy 0.9")
    for words in ("updates 108 (", "staleness 1.3", "saved 74%", "refused 7", "clients 8 (1 slow, 1 gone)"):
        assert words in said
    assert line(Federation().history()).endswith("finished target")


def test_the_final_table_sums_the_run_up() -> None:
    history = Federation().history()
    text = " ".join(" ".join(shown(final_table(history), 120)).split())
    best = history.scores.best
    assert best is not None
    assert f"{best.metrics['accuracy']:.4f}" in text
    for words in (
        "finished target: accuracy 0.97 reached 0.97",
        "versions 41",
        "164 folded, 4 duplicates dropped, 10 refused (not_finite 9, too_stale 1)",
        "74.4 % less than float32",
        "clients 8 (1 slow, 1 gone)",
    ):
        assert words in text


def test_a_better_version_than_the_last_is_named() -> None:
    history = History()
    for version, accuracy in ((1, 0.9), (2, 0.8)):
        data = {"version": version, "metrics": {"accuracy": accuracy}}
        history.add(Event(EventKind.EVALUATION, "e", START_MS, data))
    assert "0.8000 at version 2 (best 0.9000 at version 1)" in shown(final_table(history))[0]


def test_uploads_larger_than_float32_are_called_that() -> None:
    history = History()
    data = {"client_id": "a", "sequence": 1, "sent_bytes": 150, "raw_bytes": 100}
    history.add(Event(EventKind.UPDATE_SENT, "a", START_MS, data))
    assert any("150 B, 50.0 % more than float32" in row for row in shown(final_table(history)))


def test_a_loss_stands_where_there_is_no_accuracy() -> None:
    history = History()
    history.add(Event(EventKind.EVALUATION, "e", START_MS, {"version": 1, "metrics": {"loss": 2.5}}))
    assert "loss 2.500" in live(history)[1]


HOSTILE = "[red]\x1b[2J\u202e\ndeutsch\u0007[/red]"


def test_what_clients_call_themselves_drives_no_terminal() -> None:
    history = History()
    for event in Federation().events:
        data = {**event.data}
        for name in ("client_id", "reason", "detail"):
            if name in data:
                data[name] = HOSTILE + str(data[name])
        history.add(Event(event.kind, event.role, event.time_ms, data))
    output = "\n".join([*live(history), line(history), *shown(final_table(history))])
    assert not {"\x1b", "\u202e", "\u0007"} & set(output)
    assert "[red]\N{REPLACEMENT CHARACTER}[2J" in output
    assert max(cell_len(row) for row in live(history)) <= 80


@pytest.mark.parametrize("wide", ["客户端" * 10, "é" * 40, "🙂" * 20])
def test_wide_names_keep_the_columns(wide: str) -> None:
    history = History()
    history.add(Event(EventKind.CLIENT_JOINED, "c", START_MS, {"client_id": wide, "num_examples": 10**9}))
    assert max(cell_len(row) for row in live(history)) <= 80


def test_numbers_are_written_for_people() -> None:
    assert [size(n) for n in (0, 999, 1000, 12_345, 999_949, 10**9, 2**63)] == [
        "0 B", "999 B", "1.00 kB", "12.3 kB", "1.00 MB", "1.00 GB", "9.22 EB"
    ]  # fmt: skip
    assert [duration(s) for s in (0, 9.94, 59.6, 125, 3600, 12_000, 187_200)] == [
        "0.0 s", "9.9 s", "1 min", "2 min 5 s", "1 h", "3 h 20 min", "2 d 4 h"
    ]  # fmt: skip
    assert [short_duration(s) for s in (0, 34.2, 119, 720, 10_800, 10**6)] == [
        "0.0s",
        "34s",
        "119s",
        "12m",
        "3h",
        "12d",
    ]
    assert [number(x) for x in (0, 0.01234, 5.25, 999.6, 12_345, 1e12)] == [
        "0",
        "0.0123",
        "5.25",
        "1 000",
        "12 345",
        "1.00e+12",
    ]
    assert plain("a\tb\nc\x00", 4) == "a b…"
    assert sorted(["c10", "c2", "c²", "b"], key=natural) == ["b", "c2", "c10", "c²"]


def test_a_sparkline_spans_its_values() -> None:
    assert sparkline([], 8) == ""
    assert sparkline([0.5], 8) == "▁"
    assert sparkline([1.0, 1.0], 8) == "▁▁"
    assert sparkline([float(n) for n in range(100)], 8) == "▁▂▃▄▅▆▇█"
