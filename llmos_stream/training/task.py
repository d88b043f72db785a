"""What a federation learns, as its author writes it: a model, and where a site's batches come from.

`task.entry = "package.module:name"` names it in the local settings: a class derived from `Task`, or any callable
`make(task: TaskSettings, client: ClientSettings)` that returns one. Each role makes the task for itself: a client
trains on it, the evaluator tests on it, the aggregator takes its first weights from it, `serve` answers with its model.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from llmos_stream.config import ClientSettings, TaskSettings
from llmos_stream.errors import TaskError
from llmos_stream.training.batches import Batch
from llmos_stream.training.hooks import Hook
from llmos_stream.training.losses import check_classes, default_loss
from llmos_stream.training.metrics import Metric

_MOMENTUM = 0.9


class Task(ABC):
    """One learning problem. A site writes `model` and `train_batches`, and of the rest what differs from the defaults.

        class Wards(Task):
            def model(self):
                return nn.Linear(8, 2)

            def train_batches(self, shard=0):
                return DataLoader(read(self.data), self.client.batch_size, shuffle=True)

            def example(self):
                return torch.zeros(8)

    Only a client has data. The other roles make the task and its model without any, so neither `__init__` nor `model`
    may look at `data`.
    """

    name: str = "Task"
    """What it is called: the class's name, unless it has one of its own."""

    counts_tokens: bool = False
    """Whether the examples that are counted (`num_examples`) are tokens."""

    def __init__(self, task: TaskSettings, client: ClientSettings) -> None:
        self.settings = task
        self.client = client

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if cls.name in {base.__name__ for base in cls.__mro__}:
            cls.name = cls.__name__

    @property
    def options(self) -> Mapping[str, Any]:
        """The table `[task.options]` of the settings."""
        return self.settings.options

    @property
    def data(self) -> str:
        """Where this site's data are: `client.data`, as it was given.

        Raises:
            TaskError: It was not given.
        """
        if self.client.data is None:
            raise TaskError(
                "the task needs data of its own here: say where they are, by --client.data, LLMOS_CLIENT__DATA or "
                "data in the section [client] of the settings file"
            )
        return self.client.data

    @property
    def share(self) -> str:
        """Which tensors are shared: the setting `task.share`, unless the task knows better what it may mean."""
        return self.settings.share

    @property
    def whole_because(self) -> str | None:
        """Why versions must not move one fragment of the model alone (`aggregation.fragments`); None: they may."""
        return None

    @abstractmethod
    def model(self) -> nn.Module:
        """A new model. Its weights are the same in every process that has the same `task.seed`.

        torch's own generator is seeded meanwhile, and as before afterwards: constructors of layers need no care.
        """

    @abstractmethod
    def train_batches(self, shard: int = 0) -> Iterable[Batch]:
        """The batches to train on, gone through once an epoch. A generator will do: it is made anew for each epoch.

        `shard` is `client.shard`, for data that all sites have and split; a site with data of its own passes it over.
        """

    def optimizer(self, model: nn.Module) -> Optimizer:
        """A new local optimiser for `model`: by default SGD at `client.lr`, with momentum."""
        return SGD((one for one in model.parameters() if one.requires_grad), lr=self.client.lr, momentum=_MOMENTUM)

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """The mean loss over a batch, as one number that can be differentiated.

        By default the loss that the outputs carry (Hugging Face), or else the cross entropy of logits.
        """
        check_classes(default_loss, outputs, targets)
        return default_loss(outputs, targets)

    def hooks(self) -> Sequence[Hook]:
        """What a client does at fixed points of its training. See `training.hooks`."""
        return ()

    def metrics(self) -> Mapping[str, Metric]:
        """What evaluations measure beside `loss` and `accuracy`, by name. See `training.metrics`."""
        return {}

    def validation_batches(self) -> Iterable[Batch] | None:
        """What this site holds back of its own data, to measure versions on. None: nothing."""
        return None

    def test_batches(self, batch_size: int) -> Iterable[Batch] | None:
        """What the evaluator measures versions on, which needs data of its own for that. None: there are none."""
        return None

    def example(self) -> Any:
        """The inputs of one example, without the dimension of the batch. Only their shape and dtype count.

        `serve` learns from it what the model takes. None: it looks at the first of the `test_batches`.
        """
        return None

    def tensors(self) -> tuple[Tensor, Tensor] | None:
        """The training examples of all sites as (inputs, class numbers), which a simulation may split in its own ways.

        None: there are batches alone, and the sites are those of `train_batches`.
        """
        return None

    def num_train_examples(self, shard: int = 0) -> int | None:
        """How many examples an epoch has, to be told before the first one. None: they are counted while training."""
        return None
