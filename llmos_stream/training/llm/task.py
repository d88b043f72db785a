"""The task `llm`: a pre-trained language model, tuned on the sites' own texts, as a whole or by adapters.

`num_examples` counts tokens that are learnt, and the accuracy is that of single tokens.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW, Optimizer

from llmos_stream.config import ClientSettings, TaskSettings
from llmos_stream.config.base import explain
from llmos_stream.config.language_models import LlmOptions
from llmos_stream.errors import TaskError
from llmos_stream.training.hooks import Hook
from llmos_stream.training.llm.adapters import Alternating, ExactProducts, add_adapters, share_of
from llmos_stream.training.llm.base import Source, load_base, load_tokenizer, source_of
from llmos_stream.training.llm.model import LanguageModel
from llmos_stream.training.llm.sequences import SequenceBatches, Sequences, sequences_of
from llmos_stream.training.llm.texts import read_examples
from llmos_stream.training.metrics import Metric, Perplexity
from llmos_stream.training.seeds import derive_seed
from llmos_stream.training.task import Task

logger = logging.getLogger(__name__)

_LR = 2e-4


class LlmTask(Task):
    """See `config.language_models` for its options.

    Raises:
        TaskError: The options make no sense.
    """

    name = "llm"
    counts_tokens = True

    def __init__(self, task: TaskSettings, client: ClientSettings) -> None:
        super().__init__(task, client)
        try:
            self.llm = LlmOptions.model_validate(dict(task.options))
        except ValidationError as error:
            raise TaskError(f"task.options: {explain(error, LlmOptions.model_fields)}") from None
        if self.llm.lora.rank and task.share != "all":
            raise TaskError("task.share: what of an adapter is shared follows from options.lora; leave it out")
        self._read: dict[str, Sequences] = {}
        self._moments: Mapping[Tensor, Any] = {}

    @property
    def share(self) -> str:
        return share_of(self.llm.lora) if self.llm.lora.rank else self.settings.share

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.source)

    @cached_property
    def source(self) -> Source:
        """Where the base model is."""
        return source_of(self.llm.model)

    def model(self) -> LanguageModel:
        base = load_base(self.source, getattr(torch, self.llm.dtype))
        if self.llm.lora.rank:
            add_adapters(base, self.llm.lora, self.settings.seed)
        if self.llm.checkpointing:
            _checkpoint(base)
        return LanguageModel(base)

    def train_batches(self, shard: int = 0) -> SequenceBatches:
        seed = derive_seed(self.settings.seed, "batches", shard)
        return SequenceBatches(self._own(0), self.client.batch_size, self.llm.micro_batch, seed)

    def validation_batches(self) -> SequenceBatches | None:
        held = self._own(1)
        return self._measured(held, self.client.batch_size) if len(held) else None

    def test_batches(self, batch_size: int) -> SequenceBatches | None:
        if self.llm.test is None:
            return None
        return self._measured(self._sequences(self.llm.test), min(batch_size, self.client.batch_size))

    def num_train_examples(self, shard: int = 0) -> int:
        return self._own(0).num_tokens

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(outputs, targets)

    def metrics(self) -> Mapping[str, Metric]:
        return {"perplexity": Perplexity()}

    def hooks(self) -> Sequence[Hook]:
        kinds = {"alternate": Alternating, "exact": ExactProducts}
        kind = kinds.get(self.llm.lora.aggregation) if self.llm.lora.rank else None
        return () if kind is None else (kind(),)

    @property
    def whole_because(self) -> str | None:
        if not self.llm.lora.rank:
            return None
        return {
            "alternate": "lora.aggregation = alternate trains A and B in turn, by the number of the version",
            "exact": "lora.aggregation = exact sends A, B and what their product adds to the weights, which belong "
            "together",
        }.get(self.llm.lora.aggregation)

    def optimizer(self, model: nn.Module) -> Optimizer:
        """AdamW, at `client.lr` (2e-4 where that is unset), with the schedule of one round."""
        lr = self.client.lr if "lr" in self.client.model_fields_set else _LR
        trained = [one for one in model.parameters() if one.requires_grad]
        made = AdamW(trained, lr=lr, weight_decay=self.llm.weight_decay)
        if self.llm.keep_optimizer:
            made.state.update((one, self._moments[one]) for one in trained if one in self._moments)
            self._moments = made.state
        if self.llm.warmup or self.llm.schedule != "constant":
            _schedule(made, lr, self.llm, self._steps())
        return made

    def _steps(self) -> int:
        """Of a round. A measuring role has no data, and trains nothing."""
        if isinstance(self.client.local_steps, int):
            return self.client.local_steps
        if self.client.data is None:
            return 1
        return self.client.epochs * len(self.train_batches(self.client.shard))

    def _measured(self, sequences: Sequences, batch_size: int) -> SequenceBatches:
        return SequenceBatches(sequences, batch_size, self.llm.micro_batch)

    def _own(self, part: int) -> Sequences:
        found = self._sequences(self.data)
        return found.split(self.llm.holdout, derive_seed(self.settings.seed, "holdout"))[part]

    def _sequences(self, place: str) -> Sequences:
        if place not in self._read:
            options, tokenizer = self.llm, self.tokenizer
            filler = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
            examples = read_examples(place, tokenizer, learn_all=options.learn == "all")
            found, cut = sequences_of(examples, options.sequence, filler, packing=options.packing)
            if not found.num_tokens:
                raise TaskError(f"{place}: there is nothing to learn in it")
            if cut.examples or cut.dropped:
                logger.warning(
                    "%d examples are longer than options.sequence (%d tokens): the last %d tokens of them are left "
                    "out; %d examples have nothing to learn in the rest, and are left out as a whole",
                    cut.examples,
                    options.sequence,
                    cut.tokens,
                    cut.dropped,
                )
            logger.info("%d sequences of %d tokens, %d to be learnt", len(found), options.sequence, found.num_tokens)
            self._read[place] = found
        return self._read[place]


def _checkpoint(model: Any) -> None:
    arguments = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):  # of transformers 5, which warns of the older name
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=arguments)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=arguments)


def _schedule(optimizer: Optimizer, lr: float, options: LlmOptions, steps: int) -> None:
    """Set the learning rate before each step: that of step k of so many, which may be more."""
    done = 0

    def follow(*_: object) -> None:
        nonlocal done
        for group in optimizer.param_groups:
            group["lr"] = lr * share_of_lr(options, done, steps)
        done += 1

    optimizer.register_step_pre_hook(follow)


def share_of_lr(options: LlmOptions, step: int, steps: int) -> float:
    """The learning rate in step `step` of `steps`, counted from 0, as a share of the full one."""
    rising = round(options.warmup * steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    gone = min((step - rising) / max(steps - rising, 1), 1.0)
    match options.schedule:
        case "linear":
            return 1.0 - gone
        case "cosine":
            return (1.0 + math.cos(math.pi * gone)) / 2
        case _:
            return 1.0
