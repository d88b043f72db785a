"""A transformer learns eight presidents' speeches from nothing: DiLoCo, SparseLoCo, central.

Every way sees as many tokens from the same first weights. The federations run with the package's own presets, in rounds
of all sites, by the real roles on the in-process broker. `fragments-F` is DiLoCo with a model in F fragments: F times
as many rounds of an F-th of the steps, so that each fragment moves as often as the whole model does. Central training
takes a step where the sites take one each, on as many sequences as all of them together (data parallel). The loss is
that of the end of each speaker's text, which no way learns. Bits are those of the updates and the versions in the log,
without their heads.

The speeches are a JSON object a line, with `speaker` and `text`.
"""

import argparse
import asyncio
import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from transformers import LlamaConfig

from llmos_stream.config import Settings, load
from llmos_stream.federated.embedded import run_embedded
from llmos_stream.runtime import Shutdown, configure_logging
from llmos_stream.simulation.summary import Estimate, estimate
from llmos_stream.testing.language_models import byte_pairs
from llmos_stream.training import LocalTrainer, load_task
from llmos_stream.training.local import evaluate
from llmos_stream.training.local_steps import LocalSteps
from llmos_stream.training.shared_model import LocalModel
from llmos_stream.types import Event, EventKind
from tests.bench.bench_llm import speeches_of
from tests.bench.children import BenchmarkFailed, NotHere
from tests.bench.common import add_flags, show, write_json

CENTRAL = "central"
REFERENCE = "diloco"
_TOPK2: Mapping[str, object] = {"name": "topk2", "feedback_decay": 0.95}
_NEVER_FULL: Mapping[str, object] = {"full_every": 4096}
_SPARSE: Mapping[str, object] = {"codec": "topk2", "keep": 8 * 64, **_NEVER_FULL}
FEDERATED: Mapping[str, Mapping[str, Mapping[str, object]]] = {
    REFERENCE: {"federation": {"preset": "diloco"}, "versions": {"full_every": 1}},
    "sparseloco": {"federation": {"preset": "sparseloco"}, "versions": _SPARSE},
    "diloco-topk2": {"federation": {"preset": "diloco"}, "codec": _TOPK2},
}
"""Versions of the reference are whole, in float32, those of SparseLoCo sparse: of eight sites' updates nothing is left
out. Else they are as they are by default."""
WAYS = (CENTRAL, *FEDERATED)
FRAGMENTS: Mapping[str, int] = {f"fragments-{count}": count for count in (1, 2, 4, 8)}
_RATES: Mapping[str, float] = {CENTRAL: 2e-3, REFERENCE: 5e-4, "sparseloco": 2e-3, "diloco-topk2": 5e-4}
"""With a momentum of 0.9, a step of the server is up to ten times what the sites have gone."""
_LENGTH = 64
_NEVER = 86_400.0


@dataclass(frozen=True)
class Work:
    """What each way is given. In `folder` are the model, and the texts to learn and to measure on."""

    folder: str
    sites: int
    rounds: int
    steps: int
    batch: int
    rates: Mapping[str, float]
    keep_optimizer: bool
    server: Mapping[str, object]
    lengths: Mapping[str, int]
    """Steps in a round of those ways that have other rounds than `rounds` of `steps`; all take as many steps."""

    def rate(self, way: str) -> float:
        """The learning rate of AdamW."""
        return self.rates[way if way in self.rates else REFERENCE]

    def of(self, way: str) -> "Work":
        """The same, in as many rounds as this way has."""
        count = FRAGMENTS.get(way, 1)
        if self.steps % count:
            raise BenchmarkFailed(f"{way}: {self.steps} steps of a round are not to be divided by {count}")
        steps = self.lengths.get(way, self.steps // count)
        if self.rounds * self.steps % steps:
            raise BenchmarkFailed(f"{way}: {self.rounds * self.steps} steps do not make rounds of {steps}")
        return replace(self, rounds=self.rounds * self.steps // steps, steps=steps)


@dataclass(frozen=True)
class Reached:
    """Of one run: the held-out loss, tokens learnt, bits a parameter of an update and of a version, CPU seconds.

    The peaks are bytes of the largest update, and of the largest version behind the first.
    """

    way: str
    seed: int
    before: float
    loss: float
    tokens: int
    parameters: int
    bits_up: float
    bits_down: float
    peak_up: int
    peak_down: int
    seconds: float


@dataclass(frozen=True)
class _Federated:
    """Of the versions and updates of a run: mean and largest bytes of each, without the first version."""

    loss: float
    tokens: int
    up: float
    down: float
    peak_up: int
    peak_down: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_flags(parser)
    parser.add_argument("--data", type=Path, help="the speeches, as .jsonl or .jsonl.gz")
    parser.add_argument(
        "--ways", nargs="+", choices=(*WAYS, *FRAGMENTS), default=WAYS, help=f"which (default: {' '.join(WAYS)})"
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of each way, seeds 0, 1, ... (default 3)")
    parser.add_argument("--sites", type=int, default=8, help="how many speakers (default 8)")
    parser.add_argument("--rounds", type=int, default=60, help="versions (default 60)")
    parser.add_argument("--steps", type=int, default=4, help="steps of a site in a round (default 4)")
    parser.add_argument("--batch", type=int, default=2, help=f"sequences of {_LENGTH} tokens in a step (default 2)")
    parser.add_argument("--width", type=int, default=256, help="of the transformer, a multiple of 32 (default 256)")
    parser.add_argument("--depth", type=int, default=4, help="its layers (default 4)")
    parser.add_argument("--vocabulary", type=int, default=1024, help="byte pairs (default 1024)")
    parser.add_argument("--held", type=int, default=3000, help="characters of each text to measure on (default 3000)")
    parser.add_argument(
        "--rates", nargs="+", type=_rate, default=[], metavar="WAY=LR", help=f"AdamW's (default {_RATES})"
    )
    parser.add_argument(
        "--lengths",
        nargs="+",
        type=_length,
        default=[],
        metavar="WAY=STEPS",
        help="steps of a round of this way, in place of --steps: it has fewer or more rounds then",
    )
    parser.add_argument("--new-optimizer", action="store_true", help="begin AdamW anew with each round")
    parser.add_argument("--server-lr", type=float, help="in place of the preset's")


def _rate(text: str) -> tuple[str, float]:
    way, value = _of_way(text)
    return way, float(value)


def _length(text: str) -> tuple[str, int]:
    way, value = _of_way(text)
    if int(value) < 1:
        raise argparse.ArgumentTypeError(f"{text}: 1 step or more")
    return way, int(value)


def _of_way(text: str) -> tuple[str, str]:
    way, _, value = text.partition("=")
    if way not in {*WAYS, *FRAGMENTS}:
        raise argparse.ArgumentTypeError(f"{text}: there is no way {way!r}, but {', '.join((*WAYS, *FRAGMENTS))}")
    return way, value


def run(options: argparse.Namespace) -> None:
    """Print a table and write `speeches.json`. Raises BenchmarkFailed when a run does not count."""
    if options.data is None or not options.data.exists():
        raise NotHere("name the speeches by --data")
    torch.set_num_threads(options.threads)
    server = {} if options.server_lr is None else {"lr": options.server_lr}
    sizes = {name: getattr(options, name) for name in ("sites", "rounds", "steps", "batch")}
    found: list[Reached] = []
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), options)
        work = Work(
            folder,
            rates={**_RATES, **dict(options.rates)},
            keep_optimizer=not options.new_optimizer,
            server=server,
            lengths=dict(options.lengths),
            **sizes,
        )
        for seed in range(options.seeds):
            for way in options.ways:
                found.append(reach(way, work, seed))
                print(found[-1], file=sys.stderr, flush=True)
    rates = {way: work.rate(way) for way in options.ways}
    show(
        f"{found[0].parameters:,} parameters from nothing, {work.sites} sites, {options.seeds} seeds",
        [
            "way",
            "held-out loss",
            "beside central %",
            f"beside {REFERENCE} %",
            "bits up",
            "bits down",
            "most bytes up",
            "most bytes down",
            "tokens",
            "CPU s",
        ],
        [_row(way, found) for way in options.ways],
        f"{work.rounds} rounds of {work.steps} steps of {work.batch} x {_LENGTH} tokens"
        + "".join(f", {way} in rounds of {steps} steps" for way, steps in work.lengths.items())
        + f"; loss before: {mean(one.before for one in found):.3f}; lr {rates}; ±: 95 %, of the seeds; "
        "beside: the mean of the differences with the same seed; bits: of a parameter in an update and in a version; "
        "s: CPU time",
    )
    arguments = {name: value for name, value in asdict(work).items() if name != "folder"}
    write_json(options.output, "speeches", {"reached": [asdict(one) for one in found], "work": arguments})


def reach(way: str, work: Work, seed: int) -> Reached:
    """Train in one way."""
    work = work.of(way)
    settings = _settings(work, way, seed)
    configure_logging(settings.runtime)
    task = load_task(settings.task, settings.client)
    trainer = LocalTrainer(model := task.model(), task.optimizer(model), task.loss, task.hooks())
    local = LocalModel(trainer, task.share)
    held = task.test_batches(settings.evaluator.batch_size) or ()
    before = evaluate(model, held, task.loss)["loss"]
    begin = time.process_time()
    if way == CENTRAL:
        steps = LocalSteps(task.train_batches(), 1, work.rounds * work.steps)
        done = local.train(local.weights(), 0, steps.passes(0))
        found = _Federated(evaluate(model, held, task.loss)["loss"], done.num_examples, 0.0, 0.0, 0, 0)
    else:
        found = _federate(work, settings)
    bits, seconds = 8 / local.layout.numel, time.process_time() - begin
    return Reached(
        way,
        seed,
        before,
        found.loss,
        found.tokens,
        local.layout.numel,
        found.up * bits,
        found.down * bits,
        found.peak_up,
        found.peak_down,
        seconds,
    )


def _federate(work: Work, settings: Settings) -> _Federated:
    events: list[Event] = []
    clients = [
        settings.changed(client={"id": f"site-{site}", "data": f"{work.folder}/learn/{site}.txt"})
        for site in range(work.sites)
    ]
    asyncio.run(run_embedded(settings, clients, events.append, Shutdown()))
    folded, published, evaluated = (
        [_data(event) for event in events if event.kind is kind]
        for kind in (EventKind.UPDATE_FOLDED, EventKind.VERSION_PUBLISHED, EventKind.EVALUATION)
    )
    if len(folded) != work.rounds * work.sites or evaluated[-1]["version"] != work.rounds:
        raise BenchmarkFailed(f"{len(folded)} updates in version {evaluated[-1]['version']}")
    up, down = ([one["payload_bytes"] for one in events] for events in (folded, published[1:]))
    return _Federated(
        evaluated[-1]["metrics"]["loss"],
        sum(one["num_examples"] for one in folded),
        mean(up),
        mean(down),
        max(up),
        max(down),
    )


def _data(event: Event) -> dict[str, Any]:
    return dict(event.data)


def _settings(work: Work, way: str, seed: int) -> Settings:
    central = way == CENTRAL
    options = {
        "model": f"{work.folder}/model",
        "sequence": _LENGTH,
        "holdout": 0.0,
        "test": f"{work.folder}/held",
        "lora": {"rank": 0},
        "keep_optimizer": work.keep_optimizer,
    }
    client = {
        "data": f"{work.folder}/learn",
        "batch_size": work.batch * (work.sites if central else 1),
        "lr": work.rate(way),
        "local_steps": work.steps,
        "wait_seconds": _NEVER,
    }
    aggregation: dict[str, object] = {"strategy": "fedavg"}
    if way in FRAGMENTS:
        # All sites wait for the next version, so that their updates make rounds with fedbuff, too.
        aggregation = {"strategy": "fedbuff", "fragments": FRAGMENTS[way]}
    sections = {} if central else FEDERATED.get(way, {"federation": {"preset": "diloco"}, "versions": _NEVER_FULL})
    given: dict[str, Any] = {section: dict(fields) for section, fields in sections.items()}
    if not central and work.server:
        given["server_optimizer"] = dict(work.server)
    return load(
        {
            **given,
            "task": {"entry": "llm", "options": options, "seed": seed},
            "client": client,
            "aggregation": {**aggregation, "buffer_size": work.sites, "deadline_seconds": _NEVER},
            "evaluator": {"every": work.rounds},
            "stop": {"max_versions": work.rounds},
            "runtime": {"torch_threads": torch.get_num_threads(), "workers": 1, "log_level": "error"},
        }
    )


def _write(folder: Path, options: argparse.Namespace) -> None:
    """The texts of each speaker, to learn and to measure on, and a configuration with a tokenizer of what is learnt."""
    learnt = []
    for name in ("learn", "held", "model"):
        (folder / name).mkdir()
    for site, text in enumerate(speeches_of(options.data)[: options.sites]):
        learnt.append(text[: -options.held])
        (folder / "learn" / f"{site}.txt").write_text(learnt[-1], encoding="utf-8")
        (folder / "held" / f"{site}.txt").write_text(text[-options.held :], encoding="utf-8")
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=options.vocabulary,
        hidden_size=options.width,
        intermediate_size=8 * options.width // 3 // 16 * 16,
        num_hidden_layers=options.depth,
        num_attention_heads=options.width // 32,
        max_position_embeddings=_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    config.save_pretrained(folder / "model")
    byte_pairs(learnt, options.vocabulary).save_pretrained(folder / "model")


def _row(way: str, found: Sequence[Reached]) -> list[str]:
    own = [one for one in found if one.way == way]

    def beside(other: str) -> str:
        losses = {one.seed: one.loss for one in found if one.way == other}
        differences = [100 * (one.loss / losses[one.seed] - 1) for one in own if one.seed in losses]
        return "-" if way == other else _shown(estimate(differences), "+.2f")

    def bits(values: Sequence[float]) -> str:
        return f"{mean(values):.3f}" if any(values) else "-"

    def peak(values: Sequence[int]) -> str:
        return f"{max(values):,}" if any(values) else "-"

    return [
        way,
        _shown(estimate([one.loss for one in own]), ".4f"),
        beside(CENTRAL),
        beside(REFERENCE),
        bits([one.bits_up for one in own]),
        bits([one.bits_down for one in own]),
        peak([one.peak_up for one in own]),
        peak([one.peak_down for one in own]),
        f"{mean(one.tokens for one in own):,.0f}",
        f"{mean(one.seconds for one in own):.0f}",
    ]


def _shown(found: Estimate | None, form: str) -> str:
    if found is None:
        return "-"
    return f"{found.mean:{form}}" + ("" if math.isnan(found.half) else f" ± {found.half:{form.lstrip('+')}}")
