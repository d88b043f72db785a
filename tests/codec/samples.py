"""What several tests share: one spec for each kind of codec, and flat vectors with something special about them."""

import torch
from torch import Tensor

from llmos_stream.types import CodecId, CodecSpec

FLOAT32 = CodecSpec(CodecId.FLOAT32)
FLOAT16 = CodecSpec(CodecId.FLOAT16)
BFLOAT16 = CodecSpec(CodecId.BFLOAT16)
LARGEST = torch.finfo(torch.float32).max


def int8(block: int = 256, stochastic: int = 1) -> CodecSpec:
    return CodecSpec(CodecId.INT8, {"block": block, "stochastic": stochastic})


def int4(block: int = 256, stochastic: int = 1) -> CodecSpec:
    return CodecSpec(CodecId.INT4, {"block": block, "stochastic": stochastic})


def topk(fraction: float = 0.1, bits: int = 8, stochastic: int = 0) -> CodecSpec:
    return CodecSpec(CodecId.TOPK, {"fraction": fraction, "bits": bits, "stochastic": stochastic})


def topk2(chunk: int = 4096, keep: int = 64) -> CodecSpec:
    return CodecSpec(CodecId.TOPK2, {"chunk": chunk, "keep": keep})


SPECS = [
    FLOAT32,
    FLOAT16,
    BFLOAT16,
    int8(),
    int8(32, 0),
    int4(),
    int4(1024, 0),
    topk(),
    topk(0.01, 8, 1),
    topk(0.5, 32),
    topk(1.0),
    topk2(),
    topk2(64, 8),
    topk2(256, 1),
    topk2(128, 128),
]


def name(spec: CodecSpec) -> str:
    return "-".join([spec.label, *(str(value) for value in spec.params.values())])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(numel: int, seed: int = 0) -> Tensor:
    return torch.randn(numel, generator=generator(seed))


def any_bits(numel: int, seed: int = 0) -> Tensor:
    """Random bit patterns: incompressible, with every exponent, NaN and infinity."""
    bits = torch.empty(numel, dtype=torch.int32).random_(-(2**31), None, generator=generator(seed))
    return bits.view(torch.float32)


CASES: dict[str, Tensor] = {
    "empty": torch.zeros(0),
    "scalar": torch.tensor([-0.3]),
    "zeros": torch.zeros(1000),
    "negative zeros": torch.full((300,), -0.0),
    "normal": normal(3000),
    "one block and one": normal(257),
    "bfloat16 origin": normal(777).bfloat16().float(),
    "huge": normal(1000) * 2e37,
    "largest": torch.tensor([LARGEST, -LARGEST, 1.0, 0.0] * 100),
    "huge among small": torch.cat([normal(999) * 1e-3, torch.tensor([1e38])]),
    "tiny": normal(1000) * 1e-37,
    "denormal": normal(1000) * 1e-40,
    "least": torch.tensor([2.0**-149, -(2.0**-149), 0.0]),
    "all magnitudes": torch.tensor([(-1.0) ** n * 2.0**n for n in range(-149, 128)]),
    "all equal": torch.full((600,), 0.125),
}
