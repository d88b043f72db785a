"""The options of the task `llm`: which model, how it is adapted, and how a site's texts become sequences."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from llmos_stream.config.base import MOST, Count, Positive, Section, Whole


def _words(value: object) -> object:
    """Names in one string, as flags have them: between spaces, since options are split at commas."""
    return tuple(value.split()) if isinstance(value, str) else value


class LoraOptions(Section):
    rank: Whole = 8
    """Rows of A and columns of B. 0: no adapter; the whole model is trained and shared."""
    alpha: Positive = 16.0
    """The product BA is multiplied with alpha / rank."""
    targets: Annotated[tuple[str, ...], BeforeValidator(_words), Field(min_length=1)] = ("q_proj", "v_proj")
    """Names of the linear layers that are adapted; `all-linear` stands for all but the output layer."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of an adapter's inputs that are zeroed while training."""
    dora: bool = False
    """Learn the length of each weight's columns beside (DoRA, Liu et al. 2024)."""
    aggregation: Literal["ffa", "alternate", "exact", "separate"] = "ffa"
    """What is trained and shared: ffa, B alone; alternate, B on even versions and A on odd ones; exact, A, B and the
    mean of their products; separate, A and B, each averaged by itself, which is not the average of BA (FedIT)."""

    @model_validator(mode="after")
    def _dora_has_no_product(self) -> "LoraOptions":
        if self.dora and self.aggregation == "exact":
            raise ValueError("dora has no product BA alone, which exact averages; take ffa, alternate or separate")
        return self


class LlmOptions(Section):
    model: Annotated[str, Field(min_length=1)]
    """A folder with a model in safetensors or GGUF, a `.gguf` file, or a name on the Hugging Face hub. A folder with a
    configuration and a tokenizer alone begins with random weights."""
    lora: LoraOptions = LoraOptions()
    """The adapter."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the base model. Adapters are float32."""
    sequence: Annotated[int, Field(ge=2, le=MOST)] = 512
    """Tokens in a sequence."""
    packing: bool = True
    """Put several short examples into a sequence. None sees another."""
    learn: Literal["completions", "all"] = "completions"
    """Of what the loss is taken: of completions and of the assistant's messages, or of prompts too."""
    micro_batch: Count | None = None
    """Sequences in memory at once: the gradients of a batch add up over its parts. Unset: the whole batch."""
    checkpointing: bool = False
    """Compute a layer's activations again in the backward pass and hold none: less memory, a third more work."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate falls to 0 from the first to the last step of a round."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a round's steps in which the learning rate rises to client.lr."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's weight decay."""
    keep_optimizer: bool = False
    """Go on with AdamW's moments in the next round, as DiLoCo does, and do not begin anew. They take twice the memory
    of what is trained, also while a client waits. A client that starts again begins anew."""
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of a site's sequences that it holds back, to measure versions on."""
    test: str | None = None
    """Texts on which the evaluator measures versions: a file or a folder, as client.data. No other role reads it."""

    @model_validator(mode="before")
    @classmethod
    def _nested(cls, given: Any) -> Any:
        """`lora.rank=8`, as a flag has it, is the rank of the table `lora`."""
        if not isinstance(given, Mapping):
            return given
        fields: dict[str, Any] = {name: value for name, value in given.items() if not name.startswith("lora.")}
        below = {name.removeprefix("lora."): value for name, value in given.items() if name.startswith("lora.")}
        if below:
            fields["lora"] = {**fields.get("lora", {}), **below}
        return fields
