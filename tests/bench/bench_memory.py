"""Memory of a federation in one process: `FederatedLearning` alone, beside a plain loop that trains the same model.

Each runs in a process of its own, with a decoder of GPT-2's shapes. What counts is the peak of resident memory above
the plain loop's, in models of float32; a ledger says who held what near that peak.
"""

import argparse
import json
import subprocess
import sys
from typing import Any

from tests.bench.children import BenchmarkFailed
from tests.bench.common import add_flags, show, write_json

SETTINGS: dict[str, dict[str, Any]] = {
    "int8, the default": {},
    "float32": {"codec": {"name": "float32"}},
    "int8, Adam on the server": {"server_optimizer": {"name": "adam", "lr": 0.001}},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_flags(parser)
    parser.add_argument("--width", type=int, default=768, help="of the decoder (default 768, as GPT-2 small)")
    parser.add_argument("--layers", type=int, default=12, help="of the decoder (default 12, as GPT-2 small)")
    parser.add_argument("--epochs", type=int, default=6, help="updates of each (default 6)")
    parser.add_argument("--only", choices=list(SETTINGS), action="append", help="one of the settings (default: all)")


def run(options: argparse.Namespace) -> None:
    """Measure, print a table and a ledger for each, and write `memory.json`. Raises BenchmarkFailed."""
    plain = _child(options, "plain")
    model_mib = plain["numel"] * 4 / (1 << 20)
    results = []
    for name in options.only or SETTINGS:
        found = _child(options, "federated", "--settings", json.dumps(SETTINGS[name]))
        above = (found["peak_mib"] - plain["peak_mib"]) / model_mib
        results.append({"settings": name, "above_plain_models": above, **found})
    show(
        f"Memory of one process, {plain['numel'] / 1e6:.0f} M parameters ({model_mib:.0f} MiB)",
        ["", "peak, MiB", "x model", "above the plain loop, x model", "seconds"],
        [
            ["plain loop", f"{plain['peak_mib']:.0f}", f"{plain['peak_mib'] / model_mib:.1f}", "", _seconds(plain)],
            *(
                [
                    row["settings"],
                    f"{row['peak_mib']:.0f}",
                    f"{row['peak_mib'] / model_mib:.1f}",
                    f"{row['above_plain_models']:.1f}",
                    _seconds(row),
                ]
                for row in results
            ),
        ],
        "above the process with the model and its optimiser, before the first step",
    )
    for row in results:
        ledger = sorted(row["ledger"].items(), key=lambda item: -item[1])
        show("", [f"Who held what: {row['settings']}", "x model"], [[name, f"{models:.2f}"] for name, models in ledger])
    chosen = {name: getattr(options, name) for name in ("width", "layers", "epochs")}
    write_json(options.output, "memory", {"options": chosen, "plain": plain, "results": results})


def _seconds(row: dict[str, Any]) -> str:
    return f"{row['seconds']:.1f}"


def _child(options: argparse.Namespace, mode: str, *more: str) -> dict[str, Any]:
    size = [f"--{name}={getattr(options, name)}" for name in ("width", "layers", "epochs")]
    command = [sys.executable, "-m", "tests.bench.memory_child", mode, *size, *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkFailed(f"{mode} ended with status {done.returncode}: {done.stderr.strip()[-500:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
