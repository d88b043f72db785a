"""`llmos-stream deploy`: promoted adapters of a language model, handed to vLLM or LoRAX."""

import argparse
from typing import TYPE_CHECKING

from llmos_stream.cli.common import Commands, add_command, answer
from llmos_stream.cli.process import run_connected
from llmos_stream.config import Settings
from llmos_stream.errors import ConfigError, install
from llmos_stream.runtime import BROKER, Offload, Shutdown

if TYPE_CHECKING:
    from llmos_stream.broker import Broker


def add(commands: Commands) -> None:
    """Declare the command."""
    add_command(
        commands,
        "deploy",
        _run,
        text="keep vLLM or LoRAX at the promoted adapter",
        sections=("federation", "broker", "wire", "task", "runtime", "operations", "deploy", "registry", "tracing"),
        examples=(
            "  llmos-stream deploy --config laws.toml --deploy.urls http://gpu1:8000\n"
            "  llmos-stream deploy --config laws.toml --deploy.server lorax --deploy.urls http://gpu1:8080"
        ),
    )


def _run(arguments: argparse.Namespace, settings: Settings) -> int:
    if not settings.deploy.addresses:
        raise ConfigError("deploy.urls: name the servers, as in --deploy.urls http://gpu1:8000")
    if settings.task.entry != "llm":
        raise ConfigError("deploy needs versions of the task llm; set task.entry")
    try:
        from llmos_stream.inference.deployment import run_deployer
    except ImportError as error:
        raise ConfigError(f"deploy needs {error.name}; {install('llm')}") from None

    async def role(broker: "Broker", offload: Offload, shutdown: Shutdown) -> int | None:
        return await run_deployer(broker, settings, offload, shutdown)

    ended = run_connected("deployer", settings, role, needs=(BROKER, *settings.deploy.addresses), endless=True)
    if ended.in_order:
        version = ended.result
        told = (
            "stopped before every server had the same version" if version is None else f"version {version} is deployed"
        )
        answer(arguments, {"version": version}, told)
    return ended.status
