"""`llmos-stream replay`: rebuild versions from the log and compare digests, or ask what if."""

import argparse
import asyncio
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

from llmos_stream.cli.common import Commands, add_command, note, plain_table, print_json, say, show_table
from llmos_stream.cli.export import check_target, write_weights
from llmos_stream.cli.flags import file_path, given_settings
from llmos_stream.cli.replaying import bar, numbers_of, opened
from llmos_stream.cli.whatif import run_what_if
from llmos_stream.config import SECTIONS, Settings
from llmos_stream.errors import ConfigError
from llmos_stream.reporting.wording import as_text, plural

if TYPE_CHECKING:
    from llmos_stream.replay.rebuild import Verdict

RULE = ("aggregation", "staleness", "server_optimizer")
_RECORDED = {name: dict.fromkeys(SECTIONS[name].model_fields, "as recorded in the log") for name in RULE}
_STRATEGY, _KIND = ("aggregation", "strategy"), ("staleness", "kind")


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "replay",
        _run,
        text="rebuild versions from the log and compare digests, or ask what if",
        sections=("federation", "broker", "wire", "runtime", "task", "evaluator", *RULE),
        shown=_RECORDED,
        examples=(
            "  llmos-stream replay                       # every version that can be\n"
            "  llmos-stream replay 5-12\n"
            "  llmos-stream replay --without client-7    # and compare the accuracy\n"
            "  llmos-stream replay --staleness hinge\n"
            "  llmos-stream replay --server-optimizer.lr 0.5 --to what-if.safetensors"
        ),
    )
    parser.add_argument("versions", nargs="?", metavar="N|N-M", help="which versions; default: all that the log holds")
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="CLIENT",
        help="what if this client's updates were left out? Repeatable",
    )
    parser.add_argument("--strategy", metavar="NAME", help="what if? Short for --aggregation.strategy, below")
    parser.add_argument("--staleness", metavar="NAME", help="what if? Short for --staleness.kind, below")
    parser.add_argument("--every", type=int, metavar="N", help="what if: compare evaluations at every N-th version too")
    parser.add_argument("--no-evaluation", action="store_true", help="what if: compare weights alone; needs no task")
    parser.add_argument("--to", type=file_path, metavar="FILE", help="write the resulting weights (safetensors)")


def _run(arguments: argparse.Namespace, settings: Settings) -> int:
    changes = changes_of(arguments)
    if arguments.to is not None:
        check_target(arguments.to)
    if arguments.every is not None and arguments.every < 1:
        raise ConfigError("--every: at least 1")
    if changes or arguments.without:
        return run_what_if(arguments, settings, changes)
    return asyncio.run(_rebuild(settings, arguments))


def changes_of(arguments: argparse.Namespace) -> dict[str, dict[str, object]]:
    """What flags say of the rule. Environment and file describe the federation that runs, not one that might have."""
    given = given_settings(arguments)
    for section, field, value in ((*_STRATEGY, arguments.strategy), (*_KIND, arguments.staleness)):
        if value is not None:
            given.setdefault(section, {})[field] = value
    return {section: fields for section, fields in given.items() if section in RULE}


async def _rebuild(settings: Settings, arguments: argparse.Namespace) -> int:
    from llmos_stream.replay.rebuild import Rebuilder, RebuildOutcome

    verdicts = []
    async with opened(settings) as log:
        numbers = numbers_of(arguments.versions, log.index, settings.federation.name)
        rebuilding = Rebuilder(log, numbers)
        with bar("rebuilding versions", len(numbers)) as step:
            async for verdict in rebuilding.verdicts():
                verdicts.append(verdict)
                step()
    if arguments.json:
        print_json(_plain(verdicts))
    else:
        _show(verdicts)
    if arguments.to is not None and rebuilding.last is not None:
        last = rebuilding.last.head.number
        digest = next(verdict.rebuilt_digest for verdict in verdicts if verdict.version == last)
        named = {"federation": settings.federation.name, "version": str(last), "weights_digest": digest}
        write_weights(rebuilding.last, arguments.to, named | {"replay": "rebuilt from the log"})
        note(f"wrote version {last}, as rebuilt, to {arguments.to}")
    counted = Counter(verdict.outcome for verdict in verdicts)
    asked_for_in_vain = arguments.versions is not None and counted[RebuildOutcome.GONE]
    return 1 if counted[RebuildOutcome.DIFFERS] or asked_for_in_vain else 0


def _plain(verdicts: "list[Verdict]") -> dict[str, object]:
    from llmos_stream.log.versions import build

    counted = Counter(str(verdict.outcome) for verdict in verdicts)
    rows = [asdict(verdict) | {"build": dict(verdict.build)} for verdict in verdicts]
    totals = {name: counted[name] for name in ("initial", "match", "differs", "gone")}
    return {"versions": rows, **totals, "build": dict(build())}


def _show(verdicts: "list[Verdict]") -> None:
    from llmos_stream.log.versions import build
    from llmos_stream.replay.rebuild import RebuildOutcome

    table = plain_table("version", "contributions", "verdict", "published", "max difference", "relative L2")
    for verdict in verdicts:
        apart = verdict.difference
        table.add_row(
            str(verdict.version),
            str(verdict.contributions),
            str(verdict.outcome),
            verdict.published_digest[:12] or "-",
            f"{apart.max_abs:.3g}" if apart else "-",
            f"{apart.relative_l2:.3g}" if apart else "-",
        )
    show_table(table)
    for verdict in verdicts:
        if verdict.detail:
            say(f"version {verdict.version}: {verdict.detail}")
    differing = [verdict for verdict in verdicts if verdict.outcome is RebuildOutcome.DIFFERS]
    for recorded in {as_text(verdict.build): None for verdict in differing}:
        say(f"computed first on {recorded}; here on {as_text(build())}: kernels may round differently elsewhere")
    counted = Counter(verdict.outcome for verdict in verdicts)
    words = {
        RebuildOutcome.MATCH: "rebuilt, every digest as published",
        RebuildOutcome.DIFFERS: "rebuilt with another result",
        RebuildOutcome.GONE: "not to be rebuilt any more",
        RebuildOutcome.INITIAL: "where the log begins",
    }
    told_of = [f"{plural(counted[outcome], 'version')} {text}" for outcome, text in words.items() if counted[outcome]]
    say("; ".join(told_of))
