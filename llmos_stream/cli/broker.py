"""`llmos-stream broker`: a real single-node Kafka for developers, in the foreground."""

import argparse
import socket

from llmos_stream.cli.common import Commands, add_command, err, note, print_json, say
from llmos_stream.cli.flags import file_path
from llmos_stream.config import Settings
from llmos_stream.errors import BrokerError, ConfigError
from llmos_stream.runtime import Shutdown, run_process

_LOOK_SECONDS = 1.0
_HIGHEST_PORT = 65_535


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "broker",
        _run,
        text="run a real single-node Kafka here until Ctrl-C (needs Java 17 and Maven)",
        sections=("runtime",),
        examples=("  llmos-stream broker\n  llmos-stream broker --port 9092 --data ./kafka    # keeps its log"),
    )
    parser.add_argument("action", nargs="?", choices=["start"], default="start", help="start it (the default)")
    parser.add_argument("--port", type=int, help="port on loopback (default: a free one)")
    parser.add_argument(
        "--data", type=file_path, metavar="DIR", help="folder that keeps the log (default: a temporary one)"
    )


def _run(arguments: argparse.Namespace, settings: Settings) -> int:
    from llmos_stream.broker import LocalKafka

    if arguments.port is not None:
        _check_port(arguments.port)
    with err().status("starting Kafka (the first time it is fetched by Maven) ..."):
        kafka = LocalKafka(arguments.data, port=arguments.port).start()

    async def serve(shutdown: Shutdown) -> None:
        # Said here, where a signal is already heeded: whoever reads it may stop us at once.
        if arguments.json:
            print_json({"bootstrap_servers": kafka.bootstrap_servers})
        else:
            say(f"export LLMOS_BROKER__BOOTSTRAP_SERVERS={kafka.bootstrap_servers}")
            note("Kafka is up; paste the line above into another terminal. Ctrl-C stops it.")
        while not await shutdown.wait(_LOOK_SECONDS):
            if not kafka.running:
                raise BrokerError("Kafka has ended; its log is kafka.log in --data DIR")

    try:
        return run_process(serve)
    finally:
        kafka.stop()


def _check_port(port: int) -> None:
    """Kafka's own words for a port it cannot have are a page long."""
    if not 1 <= port <= _HIGHEST_PORT:
        raise ConfigError(f"--port: {port} is not between 1 and {_HIGHEST_PORT}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(f"--port: {port} cannot be had: {error.strerror or error}") from None
