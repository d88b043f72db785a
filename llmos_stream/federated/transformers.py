"""A callback for the Trainer of Hugging Face: `Trainer(..., callbacks=[FederatedCallback()])` trains in a federation.

The newest version comes into the model when a round begins, and an update goes out at its end. The optimiser, the
schedule, mixed precision, accumulation and all the rest are the Trainer's.
"""

from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from llmos_stream.errors import install
from llmos_stream.federated.learning import FederatedLearning
from llmos_stream.federated.rounds import Every, Rounds
from llmos_stream.federated.update import Update
from llmos_stream.training.batches import num_examples_in

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError:
    raise ImportError(f"the callback needs transformers; {install('transformers')}") from None


class FederatedCallback(TrainerCallback):
    """Takes part in a federation while a Trainer trains a model. The Trainer stops when the run has ended.

    Args:
        every: A round is one `epoch`, or so many steps of the optimiser.
        options: As of `FederatedLearning`: `federation`, `broker`, `settings` and so on. With PEFT,
            `settings={"task": {"share": "adapters"}}`.
    """

    def __init__(self, *, every: Every = "epoch", **options: Any) -> None:
        self._rounds = Rounds(every, options)
        self._handle: RemovableHandle | None = None
        self._accumulated = 1

    @property
    def learning(self) -> FederatedLearning:
        """The client, while the Trainer trains."""
        return self._rounds.learning

    @property
    def last(self) -> Update | None:
        """The update that was sent last."""
        return self._rounds.last

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._forget()  # an exception may have ended the training before
        model: nn.Module = kwargs["model"]
        self._rounds.join(model, args.world_size)
        self._accumulated = args.gradient_accumulation_steps
        # A callback is told neither the batches nor their losses.
        self._handle = model.register_forward_hook(self._trained, with_kwargs=True)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._stop_unless(self._rounds.begin(), control)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._stop_unless(self._rounds.begin(), control)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._rounds.stepped()
        self._stop_unless(not self._rounds.finished, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._rounds.every == "epoch":
            self._rounds.send()
        self._stop_unless(not self._rounds.finished, control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        try:
            self._rounds.end(kwargs["model"])
        finally:
            self._forget()

    def _forget(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        self._rounds.leave()

    def _stop_unless(self, goes_on: bool, control: TrainerControl) -> None:
        if not goes_on:
            control.should_training_stop = control.should_epoch_stop = True

    def _trained(self, model: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], outputs: Any) -> None:
        if not model.training:
            return
        loss = outputs.get("loss") if hasattr(outputs, "get") else None
        # A model that is told how many tokens a step has divides by those of all batches that are accumulated.
        share = 1.0 if named.get("num_items_in_batch") is None else 1 / self._accumulated
        self._rounds.trained(num_examples_in(named or inputs), loss if isinstance(loss, Tensor) else None, share)
