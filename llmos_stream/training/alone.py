"""What a site would have without the others: a second model, trained on its own data alone for as many steps."""

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from llmos_stream.errors import ConfigError
from llmos_stream.training.batches import Batch
from llmos_stream.training.shared_model import LocalModel, Trained
from llmos_stream.training.sharing import shared_tensors


class AloneModel:
    """Begins with the first version that it is shown, and lives in the site's model while it trains or is measured.

    It is one more vector as large as the model. Only where everything is shared: what is not would be trained by both.

    Raises:
        ConfigError: Something trainable is not shared.
    """

    def __init__(self, local: LocalModel, share: str) -> None:
        model = local.trainer.model
        shared = {tensor.data_ptr() for tensor in shared_tensors(model, share).values()}
        if any(one.requires_grad and one.data_ptr() not in shared for one in model.parameters()):
            raise ConfigError(
                "client.train_alone: the model has trainable parts that are not shared (task.share), which both models "
                "would train; share everything, or do without"
            )
        self._local = local
        self.weights: Tensor | None = None
        """As they are now: flat. None: not begun."""
        self.since: int | None = None
        """The version that it began with."""

    def begin(self, number: int, weights: Tensor) -> None:
        """Begin with a version, unless it has begun."""
        if self.weights is None:
            self.weights, self.since = weights.clone(), number

    def train(self, epochs: Sequence[Iterable[Batch]], should_stop: Callable[[], bool] | None = None) -> Trained:
        """Go on from where it is. A training that is cut short counts for nothing.

        Raises:
            TaskError: A tensor is no longer finite.
        """
        if self.weights is None or self.since is None:
            raise ValueError("begin first")
        trained = self._local.train(self.weights, self.since, epochs, should_stop)
        if not trained.stopped:
            self.weights = self._local.weights()
        return trained
