"""Size, error, speed and memory of the codecs on a real training delta, beside memcpy.

The delta is what a small transformer learns in 20 steps from the source text of Python's own standard library, once
with each of two optimisers: AdamW moves all parameters about equally far, SGD does not, and what compresses well
depends on that. Speeds are of the float32 side; memcpy is measured on the same vector in the same run, and its
columns say how many times longer the codec takes. Peak memory is what encoding takes beside the delta.
"""

import argparse
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from llmos_stream.codec import Layout, decode, encode
from llmos_stream.types import CodecId, CodecSpec
from tests.bench.common import add_flags, best_seconds, show, write_json
from tests.bench.usage import peak_of

STEPS = 20
CONTEXT = 64
BATCH = 16
TEXT_BYTES = 4_000_000

OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]] = {
    "AdamW, lr 1e-3": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
    "SGD, lr 0.1, momentum 0.9": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
}

CODECS: dict[str, CodecSpec] = {
    "float32": CodecSpec(CodecId.FLOAT32),
    "float16": CodecSpec(CodecId.FLOAT16),
    "bfloat16": CodecSpec(CodecId.BFLOAT16),
    "int8": CodecSpec(CodecId.INT8, {"block": 256, "stochastic": 1}),
    "int8 nearest": CodecSpec(CodecId.INT8, {"block": 256, "stochastic": 0}),
    "int4": CodecSpec(CodecId.INT4, {"block": 256, "stochastic": 1}),
    "int4 nearest, block 64": CodecSpec(CodecId.INT4, {"block": 64, "stochastic": 0}),
    "top 10 %, float32": CodecSpec(CodecId.TOPK, {"fraction": 0.1, "bits": 32, "stochastic": 0}),
    "top 10 %, int8": CodecSpec(CodecId.TOPK, {"fraction": 0.1, "bits": 8, "stochastic": 1}),
    "top 1 %, int8": CodecSpec(CodecId.TOPK, {"fraction": 0.01, "bits": 8, "stochastic": 1}),
}


@dataclass(frozen=True)
class Measurement:
    """One codec on one delta. Speeds in MB/s of float32; `*_memcpy` is the time as a multiple of memcpy's."""

    optimizer: str
    codec: str
    ratio: float
    relative_error: float
    encode_mb_s: float
    encode_memcpy: float
    decode_mb_s: float
    decode_memcpy: float
    memcpy_mb_s: float
    peak_mib: float | None


class CharModel(nn.Module):
    """A transformer over bytes: 3.3 million parameters at a width of 256."""

    def __init__(self, width: int, depth: int = 4) -> None:
        super().__init__()
        self.tokens = nn.Embedding(256, width)
        self.places = nn.Embedding(CONTEXT, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, 256)

    def forward(self, text: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT)
        hidden = self.body(self.tokens(text) + self.places(torch.arange(CONTEXT)), mask=mask, is_causal=True)
        logits: Tensor = self.head(hidden)
        return logits


def stdlib_text() -> Tensor:
    """The first bytes of the standard library's modules, in the order of their names."""
    modules = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    text = b"".join(module.read_bytes() for module in modules)[:TEXT_BYTES]
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def train_delta(
    make: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer], width: int
) -> tuple[Tensor, float, float]:
    """The flat delta of a short training, and the first and last loss."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CharModel(width)
        named = dict(model.named_parameters())
        layout = Layout.of(named)
        before = layout.flatten(named)
        optimizer = make(model.parameters())
        losses = [_step(model, optimizer, text) for text in _batches(stdlib_text())]
        return layout.flatten(named) - before, losses[0], losses[-1]


def _batches(text: Tensor) -> Iterator[Tensor]:
    for _ in range(STEPS):
        starts = torch.randint(0, len(text) - CONTEXT - 1, (BATCH, 1))
        yield text[starts + torch.arange(CONTEXT + 1)].long()


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, text: Tensor) -> float:
    loss = nn.functional.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item()


def measure(optimizer: str, codec: str, delta: Tensor, memcpy: float, level: int) -> Measurement:
    spec = CODECS[codec]
    generator = torch.Generator().manual_seed(0)
    out = torch.empty_like(delta)

    def encoded() -> list[bytes]:
        return list(encode(delta, spec, level=level, generator=generator))

    parts = encoded()
    error = (decode(parts, spec, delta.numel(), out) - delta).norm() / delta.norm()
    encode_seconds = best_seconds(encoded)
    decode_seconds = best_seconds(lambda: decode(parts, spec, delta.numel(), out))
    megabytes = delta.nbytes / 1e6
    peak = peak_of(encoded)
    return Measurement(
        optimizer=optimizer,
        codec=codec,
        ratio=delta.nbytes / sum(map(len, parts)),
        relative_error=float(error),
        encode_mb_s=megabytes / encode_seconds,
        encode_memcpy=encode_seconds / memcpy,
        decode_mb_s=megabytes / decode_seconds,
        decode_memcpy=decode_seconds / memcpy,
        memcpy_mb_s=megabytes / memcpy,
        peak_mib=peak,
    )


def _memcpy_seconds(delta: Tensor) -> float:
    copy = torch.empty_like(delta)
    return best_seconds(lambda: copy.copy_(delta))


def _row(result: Measurement) -> list[str]:
    return [
        result.codec,
        f"{result.ratio:.2f}",
        f"{result.relative_error:.2e}",
        f"{result.encode_mb_s:,.0f}",
        f"{result.encode_memcpy:.1f}",
        f"{result.decode_mb_s:,.0f}",
        f"{result.decode_memcpy:.1f}",
        "-" if result.peak_mib is None else f"{result.peak_mib:.0f}",
    ]


COLUMNS = ["codec", "ratio", "L2 error", "encode MB/s", "x memcpy", "decode MB/s", "x memcpy", "peak MiB"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_flags(parser)
    parser.add_argument("--level", type=int, default=1, help="zstd level (default 1)")
    parser.add_argument(
        "--width", type=int, default=256, help="width of the transformer, a multiple of 4 (default 256)"
    )


def run(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    results: list[Measurement] = []
    for optimizer, make in OPTIMIZERS.items():
        delta, first, last = train_delta(make, options.width)
        memcpy = _memcpy_seconds(delta)
        here = [measure(optimizer, codec, delta, memcpy, options.level) for codec in CODECS]
        title = f"{STEPS} steps of {optimizer}: loss {first:.2f} to {last:.2f}, {delta.numel():,} parameters"
        speed = delta.nbytes / 1e6 / memcpy
        caption = f"zstd level {options.level}; memcpy {speed:,.0f} MB/s; torch threads {torch.get_num_threads()}"
        show(title, COLUMNS, [_row(result) for result in here], caption)
        results += here
    write_json(
        options.output, "codec", {"zstd_level": options.level, "results": [asdict(result) for result in results]}
    )
