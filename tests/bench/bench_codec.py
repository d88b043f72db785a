"""Size, error, speed and memory of the codecs on real training deltas, beside memcpy.

A small transformer learns from the source text of Python's own standard library, with each of two optimisers, in rounds
as a client's: a round starts a new optimiser and its delta is what its steps changed. Size is in % of float32. AdamW
divides by its gradients' own size, so its first steps move all parameters about equally far and little is left for an
entropy coder to save: the first table shows how size falls with the steps of a round and from round to round. SGD is
not like that.

The second table is of the last round. Its errors are L2 norms relative to the delta's; `sum` is that of the sum of all
rounds, `feedback` the same with error feedback. Speeds are of the float32 side, without feedback; memcpy is measured on
the same vector in the same run, and its columns say how many times longer the codec takes. Peak memory is what encoding
takes beside the delta.
"""

import argparse
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from llmos_stream.codec import ErrorFeedback, Layout, decode, encode
from llmos_stream.types import CodecId, CodecSpec
from tests.bench.children import BenchmarkFailed
from tests.bench.common import add_flags, best_seconds, show, write_json
from tests.bench.usage import peak_of

ROUNDS = 3
FEW_STEPS = 20
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
    "int8, block 512": CodecSpec(CodecId.INT8, {"block": 512, "stochastic": 1}),
    "int8, block 1024": CodecSpec(CodecId.INT8, {"block": 1024, "stochastic": 1}),
    "int4": CodecSpec(CodecId.INT4, {"block": 256, "stochastic": 1}),
    "int4 nearest, block 64": CodecSpec(CodecId.INT4, {"block": 64, "stochastic": 0}),
    "int4, block 512": CodecSpec(CodecId.INT4, {"block": 512, "stochastic": 1}),
    "int4, block 1024": CodecSpec(CodecId.INT4, {"block": 1024, "stochastic": 1}),
    "top 10 %, float32": CodecSpec(CodecId.TOPK, {"fraction": 0.1, "bits": 32, "stochastic": 0}),
    "top 10 %, int8": CodecSpec(CodecId.TOPK, {"fraction": 0.1, "bits": 8, "stochastic": 1}),
    "top 1 %, int8": CodecSpec(CodecId.TOPK, {"fraction": 0.01, "bits": 8, "stochastic": 1}),
    "topk2": CodecSpec(CodecId.TOPK2, {"chunk": 4096, "keep": 64}),
}


@dataclass(frozen=True)
class Measurement:
    """One codec on one optimiser's deltas. Speeds in MB/s of float32; `*_memcpy` is the time as a multiple of memcpy's.

    Sizes are in % of float32: of the first FEW_STEPS steps, and of each round. All else is of the last round, but for
    the errors of the sum of all.
    """

    optimizer: str
    codec: str
    few_steps_percent: float
    rounds_percent: list[float]
    ratio: float
    relative_error: float
    sum_error: float
    feedback_error: float
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


@dataclass(frozen=True)
class Training:
    """Flat deltas: of the first FEW_STEPS steps and of each round; and the loss at the beginning and at the end."""

    few_steps: Tensor
    rounds: list[Tensor]
    first_loss: float
    last_loss: float


def train(make: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer], width: int, steps: int) -> Training:
    """ROUNDS rounds of `steps` steps on one model, each with a new optimiser."""
    text = stdlib_text()
    few_steps, rounds, losses = torch.empty(0), [], []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CharModel(width)
        named = dict(model.named_parameters())
        layout = Layout.of(named)
        for _ in range(ROUNDS):
            before = layout.flatten(named)
            optimizer = make(model.parameters())
            for _ in range(steps):
                losses.append(_step(model, optimizer, _batch(text)))
                if len(losses) == FEW_STEPS:
                    few_steps = layout.flatten(named) - before
            rounds.append(layout.flatten(named) - before)
    return Training(few_steps, rounds, losses[0], losses[-1])


def _batch(text: Tensor) -> Tensor:
    starts = torch.randint(0, len(text) - CONTEXT - 1, (BATCH, 1))
    return text[starts + torch.arange(CONTEXT + 1)].long()


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, text: Tensor) -> float:
    loss = nn.functional.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item()


def measure(optimizer: str, codec: str, trained: Training, memcpy: float, level: int) -> Measurement:
    spec = CODECS[codec]
    generator = torch.Generator().manual_seed(0)
    delta, total = trained.rounds[-1], torch.stack(trained.rounds).sum(0)
    out = torch.empty_like(delta)
    feedback = ErrorFeedback(delta.numel())
    left = total.clone()
    sizes = []

    def encoded(values: Tensor = delta) -> list[bytes]:
        return list(encode(values, spec, level=level, generator=generator))

    for values in trained.rounds:
        parts = encoded(values)
        sizes.append(_percent(parts, values))
        left -= decode(parts, spec, values.numel(), out)
        list(feedback.frames(values.clone(), spec, level=level, generator=generator))
        feedback.commit()
    residual = feedback.residual
    error = (out - delta).norm() / delta.norm()
    encode_seconds = best_seconds(encoded)
    decode_seconds = best_seconds(lambda: decode(parts, spec, delta.numel(), out))
    megabytes = delta.nbytes / 1e6
    peak = peak_of(encoded)
    return Measurement(
        optimizer=optimizer,
        codec=codec,
        few_steps_percent=_percent(encoded(trained.few_steps), trained.few_steps),
        rounds_percent=sizes,
        ratio=100 / sizes[-1],
        relative_error=float(error),
        sum_error=float(left.norm() / total.norm()),
        feedback_error=0.0 if residual is None else float(residual.norm() / total.norm()),
        encode_mb_s=megabytes / encode_seconds,
        encode_memcpy=encode_seconds / memcpy,
        decode_mb_s=megabytes / decode_seconds,
        decode_memcpy=decode_seconds / memcpy,
        memcpy_mb_s=megabytes / memcpy,
        peak_mib=peak,
    )


def _percent(parts: Sequence[bytes], values: Tensor) -> float:
    return 100 * sum(map(len, parts)) / values.nbytes


def _memcpy_seconds(delta: Tensor) -> float:
    copy = torch.empty_like(delta)
    return best_seconds(lambda: copy.copy_(delta))


def _row(result: Measurement) -> list[str]:
    return [
        result.codec,
        f"{result.rounds_percent[-1]:.2f}",
        f"{result.relative_error:.1e}",
        f"{result.sum_error:.1e}",
        f"{result.feedback_error:.1e}",
        f"{result.encode_mb_s:,.0f}",
        f"{result.encode_memcpy:.1f}",
        f"{result.decode_mb_s:,.0f}",
        f"{result.decode_memcpy:.1f}",
        "-" if result.peak_mib is None else f"{result.peak_mib:.0f}",
    ]


COLUMNS = ["codec", "%", "error", "sum", "feedback", "encode", "x", "decode", "x", "MiB"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_flags(parser)
    parser.add_argument("--level", type=int, default=1, help="zstd level (default 1)")
    parser.add_argument(
        "--width", type=int, default=256, help="width of the transformer, a multiple of 4 (default 256)"
    )
    parser.add_argument("--steps", type=int, default=60, help=f"steps of a round, {FEW_STEPS} or more (default 60)")


def run(options: argparse.Namespace) -> None:
    if options.steps < FEW_STEPS:
        raise BenchmarkFailed(f"--steps: {options.steps} is less than {FEW_STEPS}")
    torch.set_num_threads(options.threads)
    results: list[Measurement] = []
    for optimizer, make in OPTIMIZERS.items():
        trained = train(make, options.width, options.steps)
        delta = trained.rounds[-1]
        memcpy = _memcpy_seconds(delta)
        here = [measure(optimizer, codec, trained, memcpy, options.level) for codec in CODECS]
        show(
            f"Bytes in % of float32: {optimizer}, {options.steps} steps a round, {delta.numel():,} parameters",
            ["codec", f"first {FEW_STEPS} steps", *(f"round {number + 1}" for number in range(ROUNDS))],
            [
                [result.codec, *(f"{size:.2f}" for size in (result.few_steps_percent, *result.rounds_percent))]
                for result in here
            ],
            f"zstd level {options.level}; loss {trained.first_loss:.2f} to {trained.last_loss:.2f}",
        )
        speed = delta.nbytes / 1e6 / memcpy
        show(
            f"Round {ROUNDS}: {optimizer}",
            COLUMNS,
            [_row(result) for result in here],
            f"%: of float32; error: relative, L2; sum: that of the sum of all rounds; feedback: the same with error "
            f"feedback; encode, decode: MB/s; x: times memcpy ({speed:,.0f} MB/s); MiB: peak memory of encoding; "
            f"torch threads {torch.get_num_threads()}",
        )
        results += here
    write_json(
        options.output,
        "codec",
        {
            "zstd_level": options.level,
            "steps": options.steps,
            "few_steps": FEW_STEPS,
            "results": [asdict(result) for result in results],
        },
    )
