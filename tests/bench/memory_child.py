"""A process of the memory benchmark: a decoder of GPT-2's kind, trained in a plain loop or by `FederatedLearning`.

Answers with one line of JSON: the peak of its resident memory above what it had with the model and its optimiser, and,
taken as near to that peak as sampling comes, who held what.
"""

import argparse
import ctypes
import gc
import json
import threading
import time
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmos_stream import FederatedLearning
from llmos_stream.broker.memory.log import PartitionLog
from tests.bench.usage import forget_peak, peak_mib, resident_mib

VOCABULARY, TOKENS = 50257, 32
_LEAST = 0.05
_SAMPLE_SECONDS = 0.01


class Decoder(nn.Module):
    """GPT-2's shapes: with `width` 768 and 12 `layers` those of its small one, of 124 M parameters."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, width), nn.Embedding(1024, width)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, width // 64, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        found = self.tokens(tokens) + self.places(torch.arange(length))
        for layer in self.layers:
            found = layer(found, src_mask=mask, is_causal=True)
        return functional.linear(self.norm(found), self.tokens.weight).flatten(0, 1)


def holders(unit: float) -> dict[str, float]:
    """Who of this package holds how much, in units of so many bytes: tensors by where they lie, and bytes."""
    found: dict[str, float] = {}
    places: dict[int, tuple[float, set[str]]] = {}
    for thing in gc.get_objects():
        if type(thing) is PartitionLog:
            in_memory = sum(len(entry.record.value or b"") for entry in thing._entries)
            found["log, in memory"] = found.get("log, in memory", 0.0) + in_memory / unit
            found["log, in a file"] = found.get("log, in a file", 0.0) + (thing.bytes - in_memory) / unit
        elif str(type(thing).__module__).startswith("llmos_stream"):
            for name, value in _attributes(thing):
                for tensor in _tensors(value):
                    storage = tensor.untyped_storage()
                    _, names = places.setdefault(storage.data_ptr(), (storage.nbytes() / unit, set()))
                    names.add(f"{type(thing).__name__}.{name}")
    for models, names in places.values():
        if models >= _LEAST:
            key = ", ".join(sorted(names))
            found[key] = found.get(key, 0.0) + models
    return {name: round(models, 2) for name, models in found.items() if models >= _LEAST}


def _attributes(thing: object) -> Iterator[tuple[str, object]]:
    slots = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
    for name in {*slots, *getattr(thing, "__dict__", {})}:
        if name != "__weakref__" and (value := getattr(thing, name, None)) is not None:
            yield name, value


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Mapping):
        value = list(value.values())
    for each in value if isinstance(value, list | tuple) else [value]:
        if isinstance(each, Tensor):
            yield each


class _Sampler(threading.Thread):
    """Takes a ledger whenever more memory is resident than before."""

    def __init__(self, unit: float) -> None:
        super().__init__(daemon=True)
        self.unit = unit
        self.ledger: dict[str, float] = {}
        self.mib = 0.0
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(_SAMPLE_SECONDS):
            if (now := resident_mib()) > self.mib + 0.05 * self.unit / (1 << 20):
                self.mib, self.ledger = now, holders(self.unit)

    def stop(self) -> None:
        self._over.set()
        self.join()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=["plain", "federated"])
    parser.add_argument("--settings", type=json.loads, default={})
    for name in ("width", "layers", "epochs"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Decoder(options.width, options.layers)
    numel = sum(parameter.numel() for parameter in model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    tokens = torch.randint(0, VOCABULARY, (1, TOKENS))
    batches = [(tokens, tokens.flatten())]
    gc.collect()
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
    forget_peak()
    before, begun, sampler = resident_mib(), time.perf_counter(), _Sampler(4.0 * numel)
    loss = 0.0
    if options.mode == "plain":
        for _ in range(options.epochs):
            for inputs, targets in batches:
                optimizer.zero_grad()
                value = functional.cross_entropy(model(inputs), targets)
                value.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                loss = float(value.detach())
    else:
        sampler.start()
        with FederatedLearning(
            model, batches, optimizer, loss=functional.cross_entropy, settings=options.settings
        ) as learning:
            for epoch in range(options.epochs):
                loss = float(learning.train(epoch)["loss"])
        sampler.stop()
    seconds = time.perf_counter() - begun
    peak = peak_mib() - before
    print(json.dumps({"numel": numel, "peak_mib": peak, "seconds": seconds, "loss": loss, "ledger": sampler.ledger}))


if __name__ == "__main__":
    main()
