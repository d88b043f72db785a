"""`python -m llmos_stream`: the same as the `llmos-stream` command."""

from llmos_stream.cli.entry import run

run()
