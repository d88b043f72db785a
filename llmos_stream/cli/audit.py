"""`llmos-stream audit`: where a version comes from, and whether its updates are still in the log."""

import argparse
import asyncio
from typing import TYPE_CHECKING, cast

from llmos_stream.cli.common import (
    Commands,
    add_command,
    err,
    plain_table,
    print_json,
    say,
    show_fields,
    show_table,
)
from llmos_stream.cli.replaying import numbers_of, opened
from llmos_stream.config import Settings
from llmos_stream.reporting.wording import plain

if TYPE_CHECKING:
    from llmos_stream.replay.audit import Audit

_HIDDEN = ("manifest", "tensors", "signature", "kind")


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "audit",
        _run,
        text="show what a version was made of, and whether that is still in the log",
        sections=("federation", "broker", "wire", "runtime"),
        examples="  llmos-stream audit 12\n  llmos-stream audit --json    # the newest version",
    )
    parser.add_argument("number", nargs="?", type=int, help="which version; default: the newest")


def _run(arguments: argparse.Namespace, settings: Settings) -> int:
    found = asyncio.run(_audit(settings, arguments.number))
    if arguments.json:
        print_json(_plain(found))
    else:
        _show(found)
    return 0


async def _audit(settings: Settings, number: int | None) -> "Audit":
    from llmos_stream.replay.audit import audit

    async with opened(settings) as log:
        wanted = numbers_of(None if number is None else str(number), log.index, settings.federation.name)[-1]
        with err().status("reading the log ..."):
            return await audit(log, wanted)


def _plain(found: "Audit") -> dict[str, object]:
    from llmos_stream.wire import describe

    head = found.entry.head
    described = describe(head)
    described.pop("signature")
    contributions = cast("list[dict[str, object]]", described["manifest"])
    manifest = [
        contribution
        | {
            "base_version": item.base_version,
            "share": item.share,
            "log": str(item.presence),
            "detail": item.detail or None,
        }
        for contribution, item in zip(contributions, found.items, strict=True)
    ]
    place = {"partition": found.entry.at.partition, "offset": found.entry.at.offset}
    return described | {"manifest": manifest, "moments_kept": found.moments_kept} | place


def _show(found: "Audit") -> None:
    from llmos_stream.log.versions import initial_weights, rolled_back_to, started_from

    show_fields(_plain(found), _HIDDEN)
    if not found.items:
        back = rolled_back_to(found.entry.head)
        head = found.entry.head
        begins = plain(initial_weights(head)) if started_from(head) else "the weights the log begins with"
        say(f"no contributions: {begins if back is None else f'it goes back to version {back}'}")
        return
    table = plain_table("client", "seq", "offset", "n", "stale", "weight", "clip", "share", "payload", "log")
    for item in found.items:
        one = item.contribution
        table.add_row(
            plain(one.client_id),
            str(one.sequence),
            f"{one.partition}:{one.offset}",
            str(one.num_examples),
            str(one.staleness),
            f"{one.weight:.4g}",
            f"{one.clip:.3g}",
            "-" if item.share is None else f"{item.share:.1%}",
            one.payload_digest.hex()[:8],
            str(item.presence),
        )
    show_table(table)
    if found.share is not None:
        say(f"share: {found.share}")
    for item in found.items:
        if item.detail:
            say(plain(item.detail))
