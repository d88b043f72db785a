"""The folders of adapters, which servers load: one for each version that was ever deployed."""

import logging
import tempfile
from pathlib import Path

from llmos_stream.config import DeploySettings, TaskSettings
from llmos_stream.errors import ConfigError
from llmos_stream.inference.deployment.servers import Adapter
from llmos_stream.inference.model_pool import LoadedModel
from llmos_stream.training.llm.versions import write_adapter

logger = logging.getLogger(__name__)

_DIGITS = 12


class AdapterFolders:
    """Writes them below `deploy.folder`. They stay: a server may read a folder again at any time."""

    def __init__(self, settings: DeploySettings, task: TaskSettings, federation: str) -> None:
        self._folder = settings.folder
        self._seen_as = str(settings.folder.absolute()) if settings.seen_as is None else settings.seen_as.rstrip("/")
        self._rank = settings.rank
        self._task = task
        self._federation = federation

    def name(self, version: int | str) -> str:
        """What a version is asked for by, as where `serve` answers."""
        return f"{self._federation}:{version}"

    def adapter(self, model: LoadedModel) -> Adapter:
        """The adapter of a version, whose `model` is its layout and its weights. Its folder is written if need be.

        Raises:
            ConfigError: It cannot be written, or the version is of another model or has no adapter.
        """
        # The digest tells it from the same version of another run.
        own = f"{self._federation}-{model.version}-{model.digest[:_DIGITS]}"
        path = self._folder / own
        if not path.is_dir():
            self._write(model, path)
        return Adapter(self.name(model.version), f"{self._seen_as}/{own}")

    def _write(self, model: LoadedModel, path: Path) -> None:
        """Whoever sees the folder sees all of it."""
        layout, weights = model.model
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._folder, prefix=".") as fresh:
                made = Path(fresh) / path.name
                made.mkdir()
                _, left_out = write_adapter(self._task, layout, weights, made, self._rank)
                made.rename(path)
        except OSError as error:
            raise ConfigError(f"deploy.folder: cannot write {path}: {error}") from None
        if left_out:
            logger.warning(
                "version %d is no product of two small matrices: its adapter leaves out %.2g of what was added; "
                "deploy.rank lets it have more",
                model.version,
                left_out,
            )
