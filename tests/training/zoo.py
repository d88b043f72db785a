"""Models of many kinds, each in a federation of its own: what works, and with which line the others are refused."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from llmos_stream import FederatedLearning
from llmos_stream.errors import TaskError
from llmos_stream.training.wrappers import unwrapped
from tests.training import hugging_face

EXAMPLES, FEATURES, CLASSES = 8, 4, 2


class _Around(nn.Module):
    """A linear classifier with something beside it."""

    def __init__(self, **tensors: Tensor) -> None:
        super().__init__()
        self.linear = nn.Linear(FEATURES, CLASSES)
        for name, tensor in tensors.items():
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(name, tensor)
            else:
                self.register_buffer(name, tensor)

    def forward(self, inputs: Tensor) -> Any:
        return self.linear(inputs)


class _Attention(_Around):
    """With a causal mask of minus infinity in its state, as GPT-2's first port had."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__(mask=torch.full((FEATURES, FEATURES), -torch.inf).triu(1))

    def forward(self, inputs: Tensor) -> Any:
        scores = inputs.unsqueeze(2) * inputs.unsqueeze(1) + self.mask
        return self.linear((scores.softmax(-1) @ inputs.unsqueeze(2)).squeeze(2))


class _Scaled(_Around):
    def forward(self, inputs: Tensor) -> Any:
        return self.linear(inputs) * self.scale


class _Fourier(_Around):
    def forward(self, inputs: Tensor) -> Any:
        return self.linear(torch.fft.irfft(torch.fft.rfft(inputs) * self.filter, n=FEATURES))


class _Graph(_Around):
    def forward(self, inputs: Tensor) -> Any:
        return self.linear(torch.sparse.mm(self.adjacency, inputs))


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(FEATURES, FEATURES)
        self.head = nn.Linear(FEATURES, FEATURES)
        self.head.weight = self.body.weight

    def forward(self, inputs: Tensor) -> Any:
        return self.head(self.body(inputs).relu())


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 3, num_layers=2, batch_first=True)
        self.linear = nn.Linear(3, CLASSES)

    def forward(self, inputs: Tensor) -> Any:
        return self.linear(self.lstm(inputs.unsqueeze(2))[0][:, -1])


class _Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(1, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True, add_bias_kv=True)
        self.linear = nn.Linear(4, CLASSES)

    def forward(self, inputs: Tensor) -> Any:
        wide = self.wide(inputs.unsqueeze(2))
        return self.linear(self.attention(wide, wide, wide)[0].mean(1))


class _Words(nn.Module):
    """Whose gradients are sparse."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.linear = nn.EmbeddingBag(9, 3, sparse=True), nn.Linear(3, CLASSES)

    def forward(self, inputs: Tensor) -> Any:
        return self.linear(self.words(inputs.abs().mul(3).long().clamp(max=8)))


class _Locked(_Around):
    def __init__(self) -> None:
        super().__init__()
        self.log = iter(line for line in list[str]())


class _Output(dict[str, Any]):
    """Like a Hugging Face model's output: a mapping whose fields are attributes too."""

    __getattr__ = dict.__getitem__


class _HuggingFace(_Around):
    def forward(self, input_values: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.linear(input_values)
        output = _Output(logits=logits)
        if labels is not None:
            output["loss"] = nn.functional.cross_entropy(logits, labels)
        return output


def _with(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 8), layer, nn.ReLU(), nn.Linear(8, CLASSES))


def _first(model: nn.Sequential, change: Callable[[nn.Module], object]) -> nn.Module:
    change(model[0])
    return model


def _pruned(layer: nn.Module) -> None:
    prune.l1_unstructured(layer, "weight", 0.5)  # type: ignore[no-untyped-call]  # torch leaves it without types


def _plain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, CLASSES))


def _pairs(dtype: torch.dtype = torch.float32) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(3, EXAMPLES, FEATURES, generator=generator)
    return [(x.to(dtype), (x[:, 0] > 0).long()) for x in inputs]


def _named() -> list[Any]:
    return [{"input_values": inputs, "labels": labels} for inputs, labels in _pairs()]


@dataclass(frozen=True)
class Kind:
    """A kind of model, and what trains it."""

    make: Callable[[], nn.Module]
    batches: Callable[[], Any] = _pairs
    optimizer: Callable[[Any], torch.optim.Optimizer] = lambda parameters: torch.optim.SGD(parameters, lr=0.1)
    loads: bool = True  # whether torch can load the state of such a model


def _meta() -> nn.Module:
    with torch.device("meta"):
        return _plain()


def _frozen() -> nn.Module:
    return _plain().requires_grad_(False)


_FLOAT64, _BFLOAT16, _FLOAT16 = torch.float64, torch.bfloat16, torch.float16

KINDS: dict[str, Kind] = {
    "linear layers": Kind(_plain),
    "BatchNorm": Kind(lambda: _with(nn.BatchNorm1d(8))),
    "GroupNorm": Kind(lambda: _with(nn.GroupNorm(2, 8))),
    "LayerNorm": Kind(lambda: _with(nn.LayerNorm(8))),
    "a mask of minus infinity as a buffer": Kind(_Attention),
    "a mask of booleans as a buffer": Kind(lambda: _Around(mask=torch.ones(3, dtype=torch.bool))),
    "weight_norm, by hooks": Kind(lambda: _first(_plain(), nn.utils.weight_norm)),
    "weight_norm, as a parametrization": Kind(lambda: _first(_plain(), parametrizations.weight_norm)),
    "spectral_norm, by hooks": Kind(lambda: _first(_plain(), nn.utils.spectral_norm)),
    "spectral_norm, as a parametrization": Kind(lambda: _first(_plain(), parametrizations.spectral_norm)),
    "orthogonal, as a parametrization": Kind(lambda: _first(_plain(), parametrizations.orthogonal)),
    "pruned": Kind(lambda: _first(_plain(), _pruned)),
    "tied weights": Kind(_Tied),
    "a trained parameter without dimensions": Kind(lambda: _Scaled(scale=nn.Parameter(torch.tensor(2.0)))),
    "an empty parameter": Kind(lambda: _Around(empty=nn.Parameter(torch.empty(0, 3)))),
    "LSTM": Kind(_Recurrent),
    "MultiheadAttention": Kind(_Attending),
    "EmbeddingBag with sparse gradients": Kind(_Words),
    "Conv2d, channels last": Kind(
        lambda: nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, CLASSES, 2), nn.Flatten()).to(
            memory_format=torch.channels_last
        )
    ),
    "float64": Kind(lambda: _plain().to(_FLOAT64), lambda: _pairs(_FLOAT64)),
    "bfloat16": Kind(lambda: _plain().to(_BFLOAT16), lambda: _pairs(_BFLOAT16)),
    "float16": Kind(lambda: _plain().to(_FLOAT16), lambda: _pairs(_FLOAT16)),
    "torch.compile": Kind(lambda: torch.compile(_plain(), backend="eager")),  # type: ignore[arg-type, return-value]
    "DataParallel": Kind(lambda: nn.DataParallel(_plain())),
    "TorchScript": Kind(lambda: torch.jit.script(_plain())),
    "a lock or a generator among its attributes": Kind(_Locked),
    "outputs with a loss, batches by name (Hugging Face)": Kind(_HuggingFace, _named),
    "GPT-2 (transformers)": Kind(hugging_face.gpt2, hugging_face.texts),
    "Llama (transformers)": Kind(hugging_face.llama, hugging_face.texts),
    "BERT for classes (transformers)": Kind(hugging_face.bert, hugging_face.labelled_texts),
    "T5 (transformers)": Kind(hugging_face.t5, hugging_face.texts),
    "ViT (transformers)": Kind(hugging_face.vit, hugging_face.images),
    "an optimiser with a closure (L-BFGS)": Kind(
        _plain, optimizer=lambda parameters: torch.optim.LBFGS(parameters, lr=0.1)
    ),
    "a complex buffer": Kind(lambda: _Around(rotations=torch.ones(3, dtype=torch.complex64))),
    "a sparse buffer": Kind(lambda: _Graph(adjacency=torch.eye(EXAMPLES).to_sparse())),
    "an expanded buffer": Kind(lambda: _Around(row=torch.ones(1, 3).expand(2, 3)), loads=False),
    "a trained complex parameter": Kind(lambda: _Fourier(filter=nn.Parameter(torch.ones(3, dtype=torch.complex64)))),
    "a trained sparse parameter": Kind(lambda: _Graph(adjacency=nn.Parameter(torch.eye(EXAMPLES).to_sparse()))),
    "a trained expanded parameter": Kind(lambda: _Scaled(scale=nn.Parameter(torch.ones(1).expand(CLASSES)))),
    "a lazy layer": Kind(lambda: nn.Sequential(nn.LazyLinear(CLASSES))),
    "the meta device": Kind(_meta),
    "all parameters frozen": Kind(_frozen),
    "an optimiser over another model": Kind(
        _plain, optimizer=lambda _: torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    ),
    "regression without `loss`": Kind(
        lambda: nn.Linear(FEATURES, 1), lambda: [(x, x[:, :1] * 2.0) for x, _ in _pairs()]
    ),
    "regression of several numbers without `loss`": Kind(
        lambda: nn.Linear(FEATURES, 3), lambda: [(x, x[:, :3] * 2.0) for x, _ in _pairs()]
    ),
    "batches of three": Kind(_plain, lambda: [(x, y, y) for x, y in _pairs()]),
    "batches of numpy arrays": Kind(_plain, lambda: [(x.double().numpy(), y.int().numpy()) for x, y in _pairs()]),
    "batches by name, for a model without names": Kind(_plain, lambda: [{"image": x, "label": y} for x, y in _pairs()]),
    "empty batches (Poisson sampling)": Kind(_plain, lambda: [(x[:n], y[:n]) for n, (x, y) in enumerate(_pairs())]),
    "a generator for a loader": Kind(_plain, lambda: (pair for pair in _pairs())),
    "a function that gives a generator, for a loader": Kind(_plain, lambda: lambda: (pair for pair in _pairs())),
}


@contextmanager
def seeded() -> Iterator[None]:
    """The same models each time; and no warning of torch about its older ways."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        yield


def outcome(kind: Kind) -> str:
    """Train the kind of model for two versions: "works", or the line with which it is refused."""
    with seeded():
        model = kind.make()
        fresh = kind.make()
        try:
            parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
            optimizer = kind.optimizer(parameters or model.parameters())
            with FederatedLearning(model, kind.batches(), optimizer) as federation:
                for epoch in range(2):
                    assert federation.train(epoch)["version"] == epoch
                if kind.loads:
                    unwrapped(fresh).load_state_dict(federation.global_state())
                federation.load_into(fresh)
                _check(model, fresh)
        except TaskError as error:
            return str(error)
    return "works"


def _check(model: nn.Module, received: nn.Module) -> None:
    """That the newest version is what was trained; its encoding is exact here, but for rounding."""
    pairs = list(zip(model.named_parameters(), received.named_parameters(), strict=True))
    assert all(one.allclose(other, atol=0.1) for (_, one), (_, other) in pairs)
    assert any(not torch.equal(one, torch.zeros_like(one)) for (_, one), _ in pairs)


def row(name: str, result: str) -> str:
    """A line of the table."""
    return f"| {name} | {result} |"


if __name__ == "__main__":
    print(
        "\n".join([row("model", "outcome"), row("---", "---"), *(row(n, outcome(kind)) for n, kind in KINDS.items())])
    )
