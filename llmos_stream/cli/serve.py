"""`llmos-stream serve`: the federation's model, asked over HTTP while new versions come."""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_stream.cli.common import Commands, add_command, answer
from llmos_stream.cli.flags import file_path
from llmos_stream.cli.process import run_role
from llmos_stream.config import Settings
from llmos_stream.errors import ConfigError, install
from llmos_stream.runtime import MODEL, Offload, Shutdown

if TYPE_CHECKING:
    from llmos_stream.broker import Broker
    from llmos_stream.training import Task

logger = logging.getLogger(__name__)


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "serve",
        _run,
        text="answer over HTTP with a federation's versions: predictions, or what a language model says",
        sections=("federation", "broker", "wire", "task", "runtime", "operations", "inference", "registry", "tracing"),
        examples=(
            "  llmos-stream serve --task.entry digits      then open http://127.0.0.1:8000/docs\n"
            "  llmos-stream serve --inference.canary 0.1\n"
            "  llmos-stream serve --client-state ~/.local/state/llmos-stream/wards/north"
        ),
    )
    parser.add_argument(
        "--client-state",
        type=file_path,
        metavar="FOLDER",
        help="a client's state folder: answer with the part of the model that is this site's own (see task.share)",
    )


def _run(arguments: argparse.Namespace, settings: Settings) -> int:
    try:
        from llmos_stream.inference import run_inference
    except ModuleNotFoundError as error:
        raise ConfigError(f"serve needs {error.name}; {install('serve')}") from None

    async def role(broker: "Broker", task: "Task", offload: Offload, shutdown: Shutdown) -> int | None:
        await offload.run(_settle_personal, task, task.share, arguments.client_state)
        return await run_inference(broker, settings, task, offload, shutdown)

    # It goes on answering without a broker, so all that it needs is a version.
    ended = run_role("inference", settings, role, needs=(MODEL,), endless=True)
    if ended.in_order:
        version = ended.result
        told = "stopped before there was a version" if version is None else f"version {version} served last"
        answer(arguments, {"version": version}, told)
    return ended.status


def _settle_personal(task: "Task", share: str, folder: Path | None) -> None:
    """Complete the task's models with a site's own part; say so where there is one and it was not given."""
    from llmos_stream.roles.client import read_personal
    from llmos_stream.training.personal import make_personal, personal_names, some_of

    if folder is not None:
        make_personal(task, share, read_personal(folder))
        task.model()  # of another model: said before anything is served
    elif names := personal_names(task.model(), share):
        logger.warning(
            "task.share: %s of the model are each site's own, and untrained in what is served here; "
            "--client-state names the state folder of a site that has them",
            some_of(names),
        )
