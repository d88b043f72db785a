"""The tables of the documentation that the code itself gives: settings, commands, metrics, events, measurements.

    python -m tests.docs

writes each into its page, between `<!-- made: NAME -->` and `<!-- end -->`. A test makes them anew and compares.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from pydantic.fields import FieldInfo

from llmos_stream.cli.common import Parser
from llmos_stream.cli.flags import setting_of
from llmos_stream.cli.main import make_parser
from llmos_stream.cli.settings import markdown
from llmos_stream.config.language_models import LlmOptions, LoraOptions
from llmos_stream.runtime import Health
from llmos_stream.simulation.settings import OWN_SECTIONS
from llmos_stream.telemetry.federation_metrics import FederationMetrics
from llmos_stream.types import EventKind
from llmos_stream.web.health_endpoints import HealthEndpoints
from llmos_stream.wire import events
from tests.docs.pages import DOCS
from tests.monitoring.exported import everything

_MADE = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def rewritten(page: Path) -> str:
    """The page with its tables as they are now."""
    return _MADE.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]().strip()}\n\n{found[3]}", page.read_text())


def pages() -> list[Path]:
    """The pages that have such tables."""
    return [page for page in sorted(DOCS.glob("*.md")) if "<!-- made: " in page.read_text()]


def commands() -> str:
    """A section for each command: what it does, its arguments, its settings, examples."""
    return "\n\n".join(_command(name, parser) for name, parser in parsers().items())


def parsers() -> Mapping[str, Parser]:
    """The parser of each command."""
    (found,) = (action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction))
    return found.choices


def _command(name: str, parser: Parser) -> str:
    arguments = [action for action in parser._actions if setting_of(action.dest) is None and action.dest != "help"]
    sections = sorted({setting.split(".")[0] for action in parser._actions if (setting := setting_of(action.dest))})
    rows = [f"| `{_form(action)}` | {_text(action)} |" for action in arguments]
    settings = ", ".join(f"`{section}`" for section in sections)
    examples = re.sub(r"^  ", "", str(parser.epilog).removeprefix("examples:\n"), flags=re.MULTILINE).rstrip()
    return "\n\n".join(
        [
            f"### {name}\n\n{' '.join(str(parser.description).split())}",
            "| argument | meaning |\n| --- | --- |\n" + "\n".join(rows),
            *([f"Takes the [settings](settings.md) of {settings}."] if sections else []),
            f"```text\n{examples}\n```",
        ]
    )


def _form(action: argparse.Action) -> str:
    names = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    if not action.option_strings or action.nargs == 0:
        return names
    value = action.metavar or ("/".join(map(str, action.choices)) if action.choices else action.dest.upper())
    return f"{names} {value}"


def _text(action: argparse.Action) -> str:
    text = " ".join((action.help or "").replace("%%", "%").split()).replace("|", "\\|")
    chosen = f" One of {', '.join(f'`{choice}`' for choice in action.choices)}." if action.choices else ""
    return f"{text[:1].upper()}{text[1:]}{chosen}"


def metrics() -> str:
    """Every metric of the package, with its labels."""
    registry = everything(CollectorRegistry())
    FederationMetrics(registry)
    labels = {}
    for collector in registry._collector_to_names:
        labels[getattr(collector, "_name", "")] = getattr(collector, "_labelnames", ())
    rows = ["| metric | kind | labels | meaning |", "| --- | --- | --- | --- |"]
    with HealthEndpoints(Health(["broker"]), {"role": "x"}, registry).exported():
        for family in sorted(registry.collect(), key=lambda family: family.name):
            if family.name.startswith("llmos_"):
                own = labels.get(family.name) or sorted({label for sample in family.samples for label in sample.labels})
                named = ", ".join(f"`{label}`" for label in own if label != "le") or "-"
                name = f"{family.name}_total" if family.type == "counter" else family.name
                rows.append(f"| `{name}` | {family.type} | {named} | {family.documentation} |")
    return "\n".join(rows)


def llm_options() -> str:
    """The options of the task `llm`."""
    rows = ["| option | default | meaning |", "| --- | --- | --- |"]
    for prefix, model in (("", LlmOptions), ("lora.", LoraOptions)):
        for name, field in model.model_fields.items():
            if name != "lora":
                text = " ".join(str(field.description).split()).replace("|", "\\|")
                rows.append(f"| `{prefix}{name}` | {_default(field)} | {text} |")
    return "\n".join(rows)


def _default(field: FieldInfo) -> str:
    if field.is_required() or field.default is None:
        return "-"
    return " ".join(field.default) if isinstance(field.default, tuple) else str(field.default)


_TYPES: Mapping[Any, str] = {
    events.text: "text",
    events.whole: "integer",
    events.amount: "number",
    events.metrics: "names to numbers",
}


def event_fields() -> str:
    """The fields of each kind of event."""
    return "\n\n".join(f"### {kind.value}\n\n" + "\n".join(_fields(kind)) for kind in EventKind)


def _fields(kind: EventKind) -> Iterator[str]:
    yield from ("| field | type | |", "| --- | --- | --- |")
    for name, field in events.FIELDS[kind].items():
        yield f"| `{name}` | {_TYPES[field.read]} | {'required' if field.required else ''} |"


def measured(file: Path) -> str:
    """The tables of a benchmark's JSON file, and what they were measured on, where it says so."""
    results = json.loads(file.read_text())
    tables = [_markdown(table) for table in results["tables"]]
    if machine := results.get("machine"):
        tables.append(f"Measured on {machine['cpu']}, Python {machine['python']}, torch {machine['torch']}.")
    return "\n\n".join(tables)


def _markdown(table: Mapping[str, Any]) -> str:
    lines = [table["columns"], ["---"] * len(table["columns"]), *table["rows"]]
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    caption = str(table["caption"])
    title = [f"{table['title']}:"] if table["title"] else []
    said = [f"{caption[0].upper()}{caption[1:]}."] if caption else []
    return "\n\n".join([*title, rows, *said])


TABLES: Mapping[str, Callable[[], str]] = {
    **{f"bench_{file.stem}": partial(measured, file) for file in sorted((DOCS / "bench").glob("*.json"))},
    "settings": markdown,
    "simulation": partial(markdown, OWN_SECTIONS),
    "commands": commands,
    "metrics": metrics,
    "events": event_fields,
    "llm_options": llm_options,
}
