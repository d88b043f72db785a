"""Kafka's own jars from Maven Central, fetched once a user."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from llmos_stream.errors import BrokerError

KAFKA_VERSION = "4.1.0"
_FETCH_SECONDS = 600
_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>local</groupId><artifactId>kafka</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{KAFKA_VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka-tools</artifactId><version>{KAFKA_VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId><version>2.24.3</version>
    </dependency>
  </dependencies>
</project>
"""


def folder() -> Path:
    """Where the jars are, or will be: `llmos-stream/kafka-VERSION` in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(cache) if cache else Path.home() / ".cache") / "llmos-stream" / f"kafka-{KAFKA_VERSION}"
    except RuntimeError:
        raise BrokerError("this user has no home folder; set XDG_CACHE_HOME to one for Kafka's programs") from None


def fetched() -> bool:
    """Whether they are there. The folder appears as a whole or not at all."""
    return folder().is_dir()


def fetch() -> Path:
    """The folder with the jars; fetched with Maven the first time (54 MB). Two processes at once are fine.

    Raises BrokerError with Maven's own words when it fails.
    """
    target = folder()
    if fetched():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as name:
        work = Path(name)
        (work / "pom.xml").write_text(_POM)
        (work / "jars").mkdir()
        _run_maven(work)
        try:
            (work / "jars").rename(target)
        except OSError:
            if not fetched():  # another process has not been quicker: a real failure
                raise
    return target


def _run_maven(work: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise BrokerError("Maven (mvn) is not installed")
    command = [maven, "-q", "-B", _COPY, f"-DoutputDirectory={work / 'jars'}", "-DincludeScope=runtime"]
    try:
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=_FETCH_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise BrokerError(f"Maven did not fetch Kafka {KAFKA_VERSION} within {_FETCH_SECONDS} s") from None
    if done.returncode != 0:
        raise BrokerError(f"Maven could not fetch Kafka {KAFKA_VERSION}:\n{(done.stdout + done.stderr)[-2000:]}")
