"""Models of Hugging Face's transformers, tiny and with random weights, and batches as its collators make them."""

from typing import Any

import torch
import transformers
from torch import Tensor, nn

_TOKENS, _ROWS, _LENGTH, _WIDTH = 64, 4, 8, 16
_SIZES: dict[str, Any] = {
    "vocab_size": _TOKENS,
    "hidden_size": _WIDTH,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
}


def gpt2() -> nn.Module:
    """Its output layer is its embedding."""
    sizes: dict[str, Any] = {"n_positions": _LENGTH, "n_embd": _WIDTH, "n_layer": 1, "n_head": 2}
    return _made("GPT2LMHeadModel", transformers.GPT2Config(vocab_size=_TOKENS, **sizes))


def llama() -> nn.Module:
    """Its rotary embedding is in buffers that are not in its state."""
    return _made("LlamaForCausalLM", transformers.LlamaConfig(intermediate_size=32, **_SIZES))


def bert() -> nn.Module:
    return _made("BertForSequenceClassification", transformers.BertConfig(intermediate_size=32, **_SIZES))


def t5() -> nn.Module:
    """Encoder, decoder and output layer share an embedding."""
    sizes: dict[str, Any] = {
        "d_model": _WIDTH,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 1,
        "num_heads": 2,
        "decoder_start_token_id": 0,
    }
    return _made("T5ForConditionalGeneration", transformers.T5Config(vocab_size=_TOKENS, **sizes))


def vit() -> nn.Module:
    sizes = _SIZES | {"intermediate_size": 32, "image_size": 8, "patch_size": 4}
    return _made("ViTForImageClassification", transformers.ViTConfig(**sizes))


def texts() -> list[Any]:
    """Rows of tokens that are their own labels."""
    return [_batch(input_ids=rows, labels=rows) for rows in _rows()]


def labelled_texts() -> list[Any]:
    return [_batch(input_ids=rows, labels=rows[:, 0] % 2) for rows in _rows()]


def images() -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(3, _ROWS, 3, 8, 8, generator=generator)
    return [transformers.BatchEncoding({"pixel_values": one, "labels": torch.arange(_ROWS) % 2}) for one in pixels]


def _made(architecture: str, config: Any) -> nn.Module:
    model: nn.Module = getattr(transformers, architecture)(config)
    return model


def _rows() -> Tensor:
    return torch.randint(1, _TOKENS, (3, _ROWS, _LENGTH), generator=torch.Generator().manual_seed(0))


def _batch(**tensors: Tensor) -> Any:
    return transformers.BatchEncoding(tensors | {"attention_mask": torch.ones_like(tensors["input_ids"])})
