"""The product's own tensors have the dtype and the device that it gives them, whatever torch's defaults are."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import llmos_stream
from llmos_stream.config import load
from llmos_stream.federated.embedded import run_embedded
from llmos_stream.runtime import Offload, Shutdown
from llmos_stream.types import Event, EventKind
from llmos_stream.wire.evaluations import site_of

_PACKAGE = Path(llmos_stream.__file__).parent
_FLOATING = ("zeros", "ones", "empty", "full", "tensor", "eye", "rand", "randn", "linspace", "scalar_tensor")
_WHOLE = ("arange", "randint", "randperm")


def _calls() -> Iterator[tuple[str, str, set[str | None]]]:
    for path in sorted(_PACKAGE.rglob("*.py")):
        if "templates" in path.parts:  # what users begin with is theirs, and reads as torch's tutorials do
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                given = {keyword.arg for keyword in node.keywords}
                yield f"{path.relative_to(_PACKAGE)}:{node.lineno}", ast.unparse(node.func), given


def test_every_tensor_is_made_with_its_dtype_and_its_device() -> None:
    wanted = {f"torch.{name}": {"dtype", "device"} for name in _FLOATING}
    wanted |= {f"torch.{name}": {"device"} for name in _WHOLE}
    wanted |= {f"nn.{layer}": {"dtype", "device"} for layer in ("Linear", "Conv2d")}
    assert not [f"{place} {name}" for place, name, given in _calls() if wanted.get(name, set()) - given]


@pytest.fixture(params=[torch.float64, torch.bfloat16], ids=["float64", "bfloat16"])
def foreign_defaults(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch's defaults as a user may have set them. A thread has its own default device, so work stays in this one."""

    async def run(self: Offload, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    monkeypatch.setattr(Offload, "run", run)
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(before)


@pytest.mark.parametrize(
    "settings",
    [
        {"codec": {"name": "int8"}, "aggregation": {"buffer_size": 2}, "server_optimizer": {"name": "adam"}},
        {"codec": {"name": "topk"}, "aggregation": {"strategy": "fedasync"}},
        {"codec": {"name": "float32"}, "aggregation": {"strategy": "median", "buffer_size": 2}},
        {"codec": {"name": "int4"}, "aggregation": {"buffer_size": 2}, "server_optimizer": {"momentum": 0.9}},
    ],
    ids=["int8, adam", "topk, fedasync", "float32, median", "int4, momentum"],
)
@pytest.mark.usefixtures("foreign_defaults")
async def test_a_federation_runs_under_any_defaults_of_torch(settings: dict[str, Any]) -> None:
    common = {**settings, "stop": {"max_versions": 3}, "versions": {"full_every": 2}}
    common["task"] = {"entry": "blobs", "shards": 2}
    whole = load(common)
    clients = [load({**common, "client": {"id": f"c{shard}", "shard": shard}}) for shard in range(2)]
    events: list[Event] = []
    await run_embedded(whole, clients, events.append, Shutdown())
    central = [event.data for event in events if event.kind is EventKind.EVALUATION and site_of(event) is None]
    assert central[-1]["metrics"]["accuracy"] > 0.5  # type: ignore[index]
