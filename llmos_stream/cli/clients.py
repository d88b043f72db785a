"""`llmos-stream clients`: who takes part, and what an operator wants of single clients."""

import argparse
import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson

from llmos_stream.cli.common import Commands, add_command, answer, err, note, plain_table, print_json, say, show_table
from llmos_stream.config import NAME_PATTERN, ClientSettings, CodecSettings, Settings
from llmos_stream.config.orders import ORDERED, ordered
from llmos_stream.errors import ConfigError
from llmos_stream.reporting.wording import plain, plural, short_duration

if TYPE_CHECKING:
    from llmos_stream.types import ClientOrder, ParticipationRules

_ACTIONS = ("list", "set", "reset", "forbid", "allow")


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "clients",
        _run,
        text="show who takes part; give one client other settings, forbid it, or allow it again",
        sections=("federation", "broker"),
        examples=(
            "  llmos-stream clients\n"
            "  llmos-stream clients set ward-7 codec.name=topk codec.fraction=0.05 --reason 'slow link'\n"
            "  llmos-stream clients set ward-7 client.pace_seconds=60\n"
            "  llmos-stream clients reset ward-7      # its own settings again\n"
            "  llmos-stream clients forbid ward-9 --reason 'broken sensor'\n"
            "  llmos-stream clients allow ward-9"
        ),
    )
    parser.add_argument("action", nargs="?", choices=_ACTIONS, default="list", help="what to do (default: list)")
    parser.add_argument("id", nargs="?", help="which client; list needs none")
    parser.add_argument("values", nargs="*", metavar="NAME=VALUE", help=f"what set sets: {', '.join(ORDERED)}")
    parser.add_argument("--reason", default="", metavar="TEXT", help="why, for the client's owner")


def _run(arguments: argparse.Namespace, settings: Settings) -> int:
    action, client_id = arguments.action, arguments.id
    if action == "list":
        if client_id is not None:
            raise ConfigError(f"list takes no client; see llmos-stream clients set {client_id} --help")
        return _list(arguments, settings)
    if client_id is None or not re.fullmatch(NAME_PATTERN, client_id):
        raise ConfigError(f"{action} needs the id of a client; llmos-stream clients lists them")
    if (action == "set") != bool(arguments.values):
        raise ConfigError("set takes NAME=VALUE, such as codec.name=topk; the other actions take a client alone")
    given = _parsed(arguments.values)
    wanted = asyncio.run(_order(settings, action, client_id, given, arguments.reason))
    answer(arguments, {"client_id": client_id} | _plain(wanted), _told(client_id, wanted))
    return 0


def _parsed(values: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"{text}: say NAME=VALUE, such as codec.name=topk")
        try:
            found[name] = orjson.loads(value)
        except orjson.JSONDecodeError:
            found[name] = value
    ordered(ClientSettings(), CodecSettings(), found)
    return found


async def _order(
    settings: Settings, action: str, client_id: str, given: Mapping[str, Any], reason: str
) -> "ClientOrder":
    from llmos_stream.broker import Topics, connect
    from llmos_stream.log.orders import order, order_of

    topics = Topics(settings.federation.name)
    async with connect(settings.broker) as broker:
        wanted = await order_of(broker, topics, client_id)
        match action:
            case "set":
                wanted = replace(wanted, settings={**wanted.settings, **given}, reason=reason or wanted.reason)
                ordered(ClientSettings(), CodecSettings(), wanted.settings)
            case "reset":
                wanted = replace(wanted, settings={}, reason=reason or (wanted.reason if wanted.forbidden else ""))
            case "forbid":
                wanted = replace(wanted, forbidden=True, reason=reason)
            case _:
                wanted = replace(wanted, forbidden=False, reason=reason)
        await order(broker, topics, client_id, wanted)
    return wanted


def _told(client_id: str, wanted: "ClientOrder") -> str:
    parts = ["forbidden: its updates are refused, and it leaves"] if wanted.forbidden else []
    parts += [f"{name} {value}" for name, value in wanted.settings.items()]
    why = f" ({plain(wanted.reason)})" if wanted.reason and parts else ""
    return f"{client_id}: {', '.join(parts) or 'takes part under its own settings'}{why}"


def _plain(wanted: "ClientOrder") -> dict[str, Any]:
    return {"forbidden": wanted.forbidden, "settings": dict(wanted.settings), "reason": wanted.reason}


def _list(arguments: argparse.Namespace, settings: Settings) -> int:
    with err().status("reading the log ..."):
        rows, rules = asyncio.run(_read(settings))
    if arguments.json:
        print_json(rows)
        return 0
    if not rows:
        say(f"no client has taken part in {settings.federation.name}")
        return 0
    table = plain_table("client", "state", "updates", "refused", "share", "seen", "wanted")
    for row in rows:
        table.add_row(
            plain(row["client_id"], 40),
            row["state"] or "-",
            str(row["updates"]),
            str(row["refused"]),
            f"{100 * row['share']:.0f} %",
            "-" if row["silent_seconds"] is None else short_duration(row["silent_seconds"]),
            _wanted(row),
        )
    show_table(table)
    said = [] if rules.clients == ("*",) else [f"clients {','.join(rules.clients)}"]
    said += [] if rules.at_once is None else [f"{plural(rules.at_once, 'client')} at once"]
    said += [] if rules.min_examples == 1 else [f"{plural(rules.min_examples, 'example')} or more"]
    if said:
        note(f"the aggregator takes: {', '.join(said)}")
    return 0


def _wanted(row: Mapping[str, Any]) -> str:
    why = f": {plain(row['why'])}" if row["why"] else ""
    changed = ", ".join(f"{name}={value}" for name, value in row["settings"].items())
    return f"not wanted{why}" if not row["wanted"] else f"{changed}{why}" if changed else "yes"


async def _read(settings: Settings) -> "tuple[list[dict[str, Any]], ParticipationRules]":
    from llmos_stream.broker import connect
    from llmos_stream.cli.process import federation_of
    from llmos_stream.core.participation import why_unwanted
    from llmos_stream.log.control import EVERYBODY
    from llmos_stream.log.past import past_events
    from llmos_stream.reporting import History
    from llmos_stream.runtime import Offload

    history = History()
    async with connect(settings.broker) as broker, Offload(1) as offload:
        federation = federation_of(broker, settings, offload)
        async with federation.control(sequences_of=EVERYBODY) as control:
            async for event in past_events(federation, control.finished):
                history.add(event)
            rules, orders = control.participation, dict(control.orders)
    known = {row.client.client_id: row for row in history.rows(federation.clock.time_ms())}
    rows = []
    for client_id in [*known, *sorted(orders.keys() - known.keys())]:
        row, wanted = known.get(client_id), orders.get(client_id)
        why = why_unwanted(client_id, rules, wanted)
        rows.append(
            {
                "client_id": client_id,
                "state": None if row is None else str(row.state),
                "updates": 0 if row is None else row.client.folded,
                "refused": 0 if row is None else row.client.rejected,
                "share": 0.0 if row is None else row.share,
                "silent_seconds": None if row is None else row.silent_seconds,
                "wanted": why is None,
                "settings": {} if wanted is None else dict(wanted.settings),
                "why": why or ("" if wanted is None else wanted.reason),
            }
        )
    return rows, rules
