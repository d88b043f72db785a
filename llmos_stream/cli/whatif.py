"""The what-if half of `llmos-stream replay`: a counterfactual run, compared with the original."""

import argparse
import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING

from llmos_stream.cli.common import note, plain_table, print_json, say, show_table
from llmos_stream.cli.export import write_weights
from llmos_stream.cli.replaying import bar, numbers_of, opened
from llmos_stream.config import Settings
from llmos_stream.errors import ConfigError
from llmos_stream.reporting.wording import listed, plain, plural

if TYPE_CHECKING:
    from llmos_stream.core import Changes
    from llmos_stream.replay.whatif import Change, WhatIfResult
    from llmos_stream.training.model_evaluator import ModelEvaluator

_CAVEAT = (
    "Later updates were trained on models that contained the removed contributions; those updates are folded as "
    "they were sent, so what is left of the removed clients' influence in them stays."
)


def run_what_if(arguments: argparse.Namespace, settings: Settings, changes: "Changes") -> int:
    """Run the versions again with `changes`, and print how the two runs compare."""
    from llmos_stream.replay.whatif import Change

    change = Change(frozenset(arguments.without), _validated(settings, changes))
    result = asyncio.run(_run(settings, arguments, change))
    if arguments.json:
        print_json(_plain(result, change))
    else:
        _show(result, change)
    if arguments.to is not None:
        metadata = {
            "federation": settings.federation.name,
            "version": str(result.last),
            "weights_digest": result.digest,
            "what_if": _what(change),
        }
        write_weights(result.final, arguments.to, metadata)
        note(f"wrote the weights to {arguments.to}")
    return 0


def _validated(settings: Settings, changes: "Changes") -> "Changes":
    """The changes as settings have them, from text; `settings` were loaded with them and found good."""
    from llmos_stream.config import load

    parsed = load({section: dict(fields) for section, fields in changes.items()})
    return {
        section: {name: getattr(getattr(parsed, section), name) for name in changes[section]} for section in changes
    }


async def _run(settings: Settings, arguments: argparse.Namespace, change: "Change") -> "WhatIfResult":
    from llmos_stream.replay.whatif import WhatIf

    async with opened(settings) as log:
        numbers = numbers_of(arguments.versions, log.index, settings.federation.name)
        judge = None if arguments.no_evaluation else await log.offload.run(_judge, settings)
        what_if = WhatIf(log, change, judge=judge, every=arguments.every)
        with bar("telling the run again", len(numbers)) as step:
            return await what_if.run(numbers, lambda _: step())


def _judge(settings: Settings) -> "ModelEvaluator":
    from llmos_stream.training import load_task
    from llmos_stream.training.model_evaluator import ModelEvaluator, check_test_data

    task, batch_size = load_task(settings.task, settings.client), settings.evaluator.batch_size
    try:
        check_test_data(task, settings.task, batch_size)
    except ConfigError as error:
        raise ConfigError(f"{error}; compare the runs with --no-evaluation") from None
    return ModelEvaluator(task, settings.task, batch_size)


def _what(change: "Change") -> str:
    """The change in words."""
    parts = [f"without {listed(plain(name) for name in sorted(change.without))}"] if change.without else []
    parts += [
        f"{section}.{name} {value}" for section, fields in change.settings.items() for name, value in fields.items()
    ]
    return ", ".join(parts)


def _plain(result: "WhatIfResult", change: "Change") -> dict[str, object]:
    return {
        "without": sorted(change.without),
        "settings": change.settings,
        "first": result.first,
        "last": result.last,
        "deleted_before": result.deleted,
        "moments_start_anew": result.moments_reset,
        "versions": result.final.head.number - result.first,
        "original_versions": result.last - result.first,
        "folded": result.folded,
        "removed": result.removed,
        "refused": dict(result.refused),
        "original_digest": result.original_digest,
        "digest": result.digest,
        "difference": None if result.difference is None else asdict(result.difference),
        "evaluations": [asdict(point) for point in result.points],
        "note": _CAVEAT if change.without else None,
    }


def _show(result: "WhatIfResult", change: "Change") -> None:
    say(f"what if: {_what(change)}")
    if result.deleted:
        say(f"begins at version {result.first}: {result.deleted}")
    if result.moments_reset:
        say(f"the server optimiser's moments start anew: the log does not hold those of version {result.first}")
    _show_points(result)
    skipped = "".join(f", {count} refused ({reason})" for reason, count in sorted(result.refused.items()))
    say(
        f"{plural(result.folded, 'update')} folded, {result.removed} removed{skipped}; "
        f"{plural(result.final.head.number - result.first, 'version')} in place of {result.last - result.first}"
    )
    if result.digest == result.original_digest:
        say(f"the weights are those of version {result.last}, bit for bit")
    elif result.difference is not None:
        difference = result.difference
        say(f"the weights lie {difference.relative_l2:.3g} (relative L2) from those of version {result.last}")
    if change.without:
        say(_CAVEAT)


def _show_points(result: "WhatIfResult") -> None:
    if not result.points:
        return
    table = plain_table("version", "metric", "original", "what if", "difference")
    for point in result.points:
        for name, value in sorted(point.original.metrics.items()):
            other = point.changed.metrics[name]
            row = (str(point.version), plain(name), f"{value:.4f}", f"{other:.4f}", f"{other - value:+.4f}")
            table.add_row(*row)
    show_table(table)
