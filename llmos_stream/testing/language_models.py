"""A language model of a few thousand weights in a folder, for trying a federation out and for tests."""

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llmos_stream.training.llm.base import quietly

_LAYERS, _UNITS, _HEADS, _TOKENS, _LENGTH = 2, 32, 2, 384, 128
_BEGIN, _END = "<|im_start|>", "<|im_end|>"
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tiny_model(folder: Path | str, texts: Iterable[str] = (), seed: int = 0) -> None:
    """Write a Llama of two layers of 32 units with random weights, and a byte-pair tokenizer, as transformers has them.

    Args:
        folder: Where to; it is made.
        texts: What the tokenizer is made on. It can write any text, whatever they are.
        seed: Of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=_TOKENS,
            hidden_size=_UNITS,
            intermediate_size=2 * _UNITS,
            num_hidden_layers=_LAYERS,
            num_attention_heads=_HEADS,
            num_key_value_heads=1,
            max_position_embeddings=_LENGTH,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=1,
        )
        with quietly():
            LlamaForCausalLM(config).save_pretrained(folder)
    byte_pairs(texts).save_pretrained(folder)


def byte_pairs(texts: Iterable[str], tokens: int = _TOKENS) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer of at most so many tokens, made on `texts`, with a chat template."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=tokens,
        special_tokens=[_BEGIN, _END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    made = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=inner, bos_token=_BEGIN, eos_token=_END, pad_token=_END
    )
    made.chat_template = _TEMPLATE
    return made
