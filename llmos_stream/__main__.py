"""`python -m llmos_stream`: the same as the `llmos-stream` command."""

import sys

from llmos_stream.cli.main import main

sys.exit(main())
