"""`llmos-stream track`: a run's log, live or afterwards, for experiment trackers."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_stream.cli.common import Commands, add_command, answer
from llmos_stream.cli.process import federation_of, run_connected
from llmos_stream.config import Settings, did_you_mean, expanded
from llmos_stream.config.base import no_secret
from llmos_stream.errors import ConfigError, install
from llmos_stream.reporting.wording import listed, plural
from llmos_stream.runtime import Offload, Shutdown

if TYPE_CHECKING:
    from llmos_stream.broker import Broker
    from llmos_stream.tracking.follow import Tracking
    from llmos_stream.tracking.sink import Sink

_KINDS = ("mlflow", "tensorboard", "wandb-offline", "csv")
_CLIENTS = 50
_SILENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}
"""The libraries report on their users unless told otherwise, before they are imported."""


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "track",
        _run,
        text="give a run's metrics to experiment trackers from its log, live or after its end",
        sections=("federation", "broker", "wire", "runtime"),
        defaults={"runtime": {"log_level": "warning"}},
        examples=(
            "  llmos-stream track --to tensorboard:runs\n"
            "  llmos-stream track --to mlflow:http://127.0.0.1:5000 --to csv:tracked\n"
            "  llmos-stream track --to wandb-offline:wandb-runs --once"
        ),
    )
    parser.add_argument(
        "--to",
        action="append",
        required=True,
        type=_target,
        metavar="KIND:PLACE",
        help="where to: mlflow:URI, tensorboard:FOLDER, wandb-offline:FOLDER or csv:FOLDER; may be given several times",
    )
    parser.add_argument("--once", action="store_true", help="track what the log holds now, and do not follow the run")
    parser.add_argument(
        "--clients",
        type=_whole,
        default=_CLIENTS,
        metavar="N",
        help=f"how many clients have series of their own, the first in the log (default: {_CLIENTS})",
    )


def _target(text: str) -> tuple[str, str]:
    kind, colon, place = text.partition(":")
    if kind not in _KINDS:
        hint = did_you_mean(kind, _KINDS) or f"; there are {listed(_KINDS)}"
        raise argparse.ArgumentTypeError(f"no tracker {kind!r}{hint}")
    if not colon or (not place and kind != "mlflow"):
        raise argparse.ArgumentTypeError(f"{kind} needs a place: {kind}:{'URI' if kind == 'mlflow' else 'FOLDER'}")
    try:
        return kind, no_secret(place) if kind == "mlflow" else str(expanded(Path(place)))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{kind}: {error}") from None


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of clients")
    return int(text)


def _run(arguments: argparse.Namespace, settings: Settings) -> int:
    sinks = [_sink(kind, place) for kind, place in dict.fromkeys(arguments.to)]

    async def role(broker: "Broker", offload: Offload, shutdown: Shutdown) -> "Tracking":
        from llmos_stream.tracking.follow import Tracking

        tracking = Tracking(federation_of(broker, settings, offload, shutdown), sinks, arguments.clients)
        try:
            await (tracking.once() if arguments.once else tracking.follow())
        finally:
            await tracking.close()
        return tracking

    ended = run_connected("track", settings, role, patient=False, endless=True, computes=False)
    if ended.result is not None:
        _tell(arguments, ended.result)
    return ended.status


def _tell(arguments: argparse.Namespace, tracking: "Tracking") -> None:
    history, run = tracking.points.history, tracking.run
    end = history.finish
    value = {
        "run": None if run is None else run.name,
        "version": history.version,
        "finished": None if end is None else end.reason,
        "points": tracking.written,
    }
    if run is None:
        answer(arguments, value, "stopped before there was a version")
        return
    told = listed(f"{plural(count, 'new point')} to {target}" for target, count in tracking.written.items())
    how = "goes on" if end is None else f"finished: {end.reason}"
    answer(arguments, value, f"{run.name}: {told}; up to version {history.version}, {how}")


def _sink(kind: str, place: str) -> "Sink":
    """Raises ConfigError where its library, which is an extra, is not there."""
    for name, value in _SILENT.items():
        os.environ.setdefault(name, value)
    try:
        match kind:
            case "mlflow":
                from llmos_stream.tracking.mlflow import Mlflow

                return Mlflow(place)
            case "tensorboard":
                from llmos_stream.tracking.tensorboard import TensorBoard

                return TensorBoard(Path(place))
            case "wandb-offline":
                from llmos_stream.tracking.wandb_offline import WandbOffline

                return WandbOffline(Path(place))
    except ModuleNotFoundError as error:
        library, extra = str(error.name).partition(".")[0], kind.partition("-")[0]
        raise ConfigError(f"--to {kind}:{place}: needs {library}; {install(extra)}") from None
    from llmos_stream.tracking.csv_files import CsvFiles

    return CsvFiles(Path(place))
