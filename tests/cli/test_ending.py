"""How a command ends where nobody thinks of it: an interrupt among the imports, and an output that takes nothing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

_BLOCKS = """
import os, time
os.write(1, b"importing\\n")
time.sleep(60)
"""


def _command(tmp_path: Path, *code: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, *code]
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=tmp_path)


@pytest.mark.parametrize("library", ["rich", "pydantic", "torch"])
def test_an_interrupt_among_the_imports_ends_without_a_word(tmp_path: Path, library: str) -> None:
    (tmp_path / f"{library}.py").write_text(_BLOCKS)
    script = "from llmos_stream.cli.entry import run; run(['demo', '--no-report'])"
    # As where nobody ignores interrupts: who runs these tests in the background does.
    script = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {script}"
    with _command(tmp_path, "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"importing\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, b"", b"")


def test_an_interrupt_that_the_parent_ignores_is_ignored(tmp_path: Path) -> None:
    """As under nohup."""
    (tmp_path / "rich.py").write_text("import os; os.kill(os.getpid(), 2); raise SystemExit(7)")
    script = "import signal; signal.signal(2, signal.SIG_IGN); from llmos_stream.cli.entry import run; run(['demo'])"
    with _command(tmp_path, "-c", script) as process:
        process.communicate(timeout=60)
    assert process.returncode == 7


@pytest.mark.parametrize("arguments", [["settings"], ["settings", "--json"], ["settings", "--markdown"]], ids=" ".join)
def test_a_full_disk_behind_the_output_is_one_line(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "llmos_stream", *arguments]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (1, "error: standard output: No space left on device\n")


def test_a_closed_output_is_no_trouble() -> None:
    command = f"exec {sys.executable} -m llmos_stream settings --json >&- 2>&-"
    done = subprocess.run(["/bin/sh", "-c", command], check=False, timeout=60)
    assert done.returncode == 0


def test_windows_is_refused_in_one_line(tmp_path: Path) -> None:
    """It has no fcntl."""
    script = (
        "import sys; sys.modules['fcntl'] = None\ntry: import llmos_stream\nexcept ImportError as error: print(error)"
    )
    with _command(tmp_path, "-c", script) as process:
        out, err = process.communicate(timeout=60)
    assert err == b""
    assert out == b"llmos_stream runs on Linux and macOS; on Windows run it in WSL 2 or in a container (docker/)\n"
