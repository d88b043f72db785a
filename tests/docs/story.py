"""A page's blocks as one run: bash and files in their order, in a folder of its own."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from tests.docs.pages import ROOT, Block

_PORTS = re.compile(r"\b(?:9092|8090|8000)\b")
_BEGIN = """\
set -euo pipefail
set -m
begun=()
leave() {
  status=$?
  trap - EXIT
  for job in "${begun[@]}"; do kill -TERM -- "-$job" 2>/dev/null || true; done
  for job in "${begun[@]}"; do
    ended=0
    wait "$job" || ended=$?
    if [ $ended != 0 ] && [ $ended != 143 ]; then
      echo "the command in the background of $job ended with $ended"; cat "out.$job"; status=1
    fi
  done
  exit $status
}
trap leave EXIT
"""
_BACKGROUND = """\
: >out.{number}
{{
{text}}} >>out.{number} 2>&1 &
begun+=($!)
ln -sf out.{number} "out.$!"
"""
_UNTIL = """\
grep -q -m1 -- {text} <(tail --pid=${{begun[-1]}} -n +1 -f out.{number}) ||
  {{ echo {text} "did not come"; cat out.{number}; exit 1; }}
"""


def tell(blocks: Iterable[Block], folder: Path, variables: Mapping[str, str], free: Callable[[], int]) -> str:
    """Run a page's blocks. Gives what they printed; an AssertionError says which one failed.

    A port that is named on the page is another one here, the same for all of its blocks.
    """
    ports: dict[str, str] = {}

    def here(text: str) -> str:
        return _PORTS.sub(lambda found: ports.setdefault(found[0], str(free())), text)

    lines = [_BEGIN]
    for number, block in enumerate(blocks):
        lines.append(f"echo '--- {block}'\n")
        if block.title is not None:
            content = shlex.quote(here(block.text))
            lines.append(
                f"mkdir -p {shlex.quote(str(Path(block.title).parent))}\nprintf %s {content} > {block.title}\n"
            )
        elif block.language != "bash":
            continue
        elif block.background:
            lines.append(_BACKGROUND.format(text=here(block.text), number=number))
            if block.until is not None:
                lines.append(_UNTIL.format(text=shlex.quote(here(block.until)), number=number))
        else:
            lines.append(here(block.text))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("LLMOS_")},
        **variables,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "XDG_STATE_HOME": str(folder / "state"),
        "LLMOS_INFERENCE__PORT": ports.setdefault("8000", str(free())),
        "OMP_NUM_THREADS": "1",
    }
    work = folder / "page"
    work.mkdir()
    return _run("".join(lines), work, environment)


def _run(script: str, folder: Path, environment: Mapping[str, str]) -> str:
    output = folder.with_name("output")
    with output.open("w") as file:
        bash = subprocess.Popen(["/bin/bash", "-c", script], cwd=folder, env=environment, stdout=file, stderr=file)
        try:
            status = bash.wait(timeout=500)
        finally:
            for left in psutil.Process(bash.pid).children(recursive=True) if bash.poll() is None else []:
                left.send_signal(signal.SIGKILL)
            bash.kill()
            bash.wait()
    text = output.read_text()
    assert status == 0, text[-6000:]
    return text
