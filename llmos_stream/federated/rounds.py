"""Updates at the moments that a training framework names: what the callbacks for such frameworks share."""

from typing import Any, Literal

from torch import Tensor, nn

from llmos_stream.errors import ConfigError, TaskError
from llmos_stream.federated.learning import FederatedLearning
from llmos_stream.federated.update import Update

Every = int | Literal["epoch"]


class Rounds:
    """One update after the other, each of one epoch or of so many steps of the optimiser.

    `last` is the update that was sent last, with what came of it.
    """

    def __init__(self, every: Every, options: dict[str, Any]) -> None:
        """`options` are those of `FederatedLearning`."""
        if not _is_every(every):
            raise ConfigError(f"every: 'epoch' or a number of steps, not {every!r:.40}")
        self.every = every
        self.last: Update | None = None
        self._options = options
        self._learning: FederatedLearning | None = None
        self._update: Update | None = None
        self._steps = 0
        self._num_examples = 0
        self._loss: Tensor | None = None
        self._losses = 0.0

    @property
    def learning(self) -> FederatedLearning:
        """The client, from the beginning of the training to its end."""
        if self._learning is None:
            raise TaskError("the client has not joined: it does when the training begins, and leaves at its end")
        return self._learning

    def join(self, model: nn.Module, processes: int) -> None:
        """Take part with this model, which is trained by so many processes.

        Raises:
            ConfigError: They are several: their copies of the model would not get the versions.
        """
        if processes > 1:
            raise ConfigError("the callback trains in one process; this training has several")
        if self._learning is None:
            self._learning = FederatedLearning(model, **self._options)

    def begin(self) -> bool:
        """Put the newest version into the model unless an update is under way. False once the run has ended."""
        if self._update is None:
            update = self.learning.update()
            update.begin()
            if update.finished:
                return False
            self._update = update
            self._steps, self._num_examples, self._loss, self._losses = 0, 0, None, 0.0
        return True

    def trained(self, num_examples: int, loss: Tensor | None, share: float = 1.0) -> None:
        """A batch was trained on. `loss` counts as `share` of a mean over examples."""
        self._num_examples += num_examples
        if loss is not None:
            part = loss.detach() * num_examples
            self._loss = part if self._loss is None else self._loss + part
            self._losses += share * num_examples

    def stepped(self) -> None:
        """The optimiser has made a step."""
        self._steps += 1
        if self.every != "epoch" and self._steps >= self.every:
            self.send()

    def send(self) -> None:
        """Send the update under way; one without a step is forgotten."""
        update, self._update = self._update, None
        if update is None:
            return
        if not self._steps or not self._num_examples:
            update.skip()
            return
        update.num_examples = self._num_examples
        if self._loss is not None:
            update.metrics["loss"] = self._loss / self._losses
        self.last = update
        try:
            update.send()
        except BaseException:
            update.skip()
            raise

    @property
    def finished(self) -> bool:
        """Whether the run has ended, as far as the client has heard."""
        return self._learning is not None and self._learning.finished is not None

    def end(self, model: nn.Module) -> None:
        """The training is over: send what is under way, and leave. Of a run that has ended the model has the end."""
        self.send()
        if self.finished:
            self.learning.load_into(model)
        self.leave()

    def leave(self) -> None:
        """Take part no longer. What is under way is forgotten."""
        learning, self._learning = self._learning, None
        self._update = None
        if learning is not None:
            learning.close()


def _is_every(value: object) -> bool:
    return value == "epoch" or (type(value) is int and value >= 1)
