"""The images: ours, really built, and stand-ins for those that cannot be pulled everywhere.

The base is a Debian of the same release as this machine's, which stands in for `python:3.12-slim`. Kafka's image is
made of its own jars, which read the environment with the very class that the official image reads it with, and of this
machine's Java; Prometheus's of Debian's package.
"""

import shutil
import subprocess
from pathlib import Path

from llmos_stream.broker.local import jars
from tests.docker.engine import Engine

BASE, APP, KAFKA, PROMETHEUS = "python:base", "llmos-stream:ci", "kafka:ci", "prometheus:ci"
ROOT = Path(__file__).parents[2]
_HERE = Path(__file__).parent
_BUILD_SECONDS = 1200.0
_AUTHORITIES = Path("/usr/local/share/ca-certificates")
_NOT_IN_A_RUNTIME = ("jmods", "include", "man", "src.zip", "demo", "sample", "legal")


def make_base(engine: Engine) -> None:
    """A root file system with Python, imported. It trusts whom this machine trusts, for what the build fetches."""
    place = engine.folder / "base"
    trusted = place / "ca-certificates"
    trusted.mkdir(parents=True)
    if _AUTHORITIES.is_dir():
        shutil.copytree(_AUTHORITIES, trusted, dirs_exist_ok=True)
    (place / "pip.conf").write_text("[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n")
    tar = place / "base.tar"
    no_documents = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "doc", "locale")]
    hooks = [
        'rm -f "$1"/etc/resolv.conf "$1"/etc/hostname "$1"/usr/lib/python3.*/EXTERNALLY-MANAGED',
        'ln -s /usr/bin/python3 "$1"/usr/local/bin/python',
        f"copy-in {place / 'pip.conf'} /etc",
        f"copy-in {trusted} /usr/local/share",
        'chroot "$1" update-ca-certificates >/dev/null 2>&1',
    ]
    command = [
        *("mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--dpkgopt=force-unsafe-io"),
        "--include=python3,python3-pip,python3-venv,ca-certificates",
        '--aptopt=APT::Install-Recommends "false"',
        *no_documents,
        *(f"--customize-hook={hook}" for hook in hooks),
        *(_release(), str(tar), *_sources()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_SECONDS, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    path = "PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
    engine.docker("import", "--change", f"ENV {path} LANG=C.UTF-8", tar, BASE, seconds=_BUILD_SECONDS)
    shutil.rmtree(place)


def make_app(engine: Engine) -> None:
    """Our image, with the torch that PyPI has."""
    _build(engine, APP, ROOT, ROOT / "docker" / "Dockerfile", "TORCH_INDEX=")


def make_kafka(engine: Engine) -> None:
    context = engine.folder / "kafka"
    java = shutil.which("java")
    assert java is not None
    shutil.copytree(
        Path(java).resolve().parents[1],
        context / "java",
        ignore=shutil.ignore_patterns(*_NOT_IN_A_RUNTIME),
        ignore_dangling_symlinks=True,
    )
    shutil.copytree(jars.fetch(), context / "libs", ignore=shutil.ignore_patterns("*.jsa"))
    shutil.copytree(_HERE / "kafka", context, dirs_exist_ok=True)
    _build(engine, KAFKA, context, context / "Dockerfile")
    shutil.rmtree(context)


def make_prometheus(engine: Engine) -> None:
    context = engine.folder / "prometheus"
    shutil.copytree(_HERE / "prometheus", context)
    for tool in ("prometheus", "promtool"):
        found = shutil.which(tool)
        assert found is not None
        shutil.copy(found, context)
    _build(engine, PROMETHEUS, context, context / "Dockerfile")
    shutil.rmtree(context)


def layers(engine: Engine, image: str) -> dict[str, int]:
    """Bytes of what each instruction of the last stage adds, by its text; those that add nothing are left out."""
    said = engine.docker("history", "--no-trunc", "--human=false", "--format", "{{.Size}}\t{{.CreatedBy}}", image)
    pairs = [line.split("\t", 1) for line in said.splitlines()]
    return {text: int(size) for size, text in pairs if int(size)}


def _build(engine: Engine, tag: str, context: Path, dockerfile: Path, *arguments: str) -> None:
    given = [word for argument in (f"BASE={BASE}", *arguments) for word in ("--build-arg", argument)]
    engine.docker(
        *("build", "--progress", "plain", "--network", "host", "--tag", tag, "--file", dockerfile, *given, context),
        seconds=_BUILD_SECONDS,
    )


def _release() -> str:
    lines = Path("/etc/os-release").read_text().splitlines()
    return next(line.partition("=")[2].strip('"') for line in lines if line.startswith("VERSION_CODENAME="))


def _sources() -> list[str]:
    """This machine's own list of Debian's mirrors, where it has one."""
    own = Path("/etc/apt/sources.list.d/debian.sources")
    return [str(own)] if own.is_file() else []
