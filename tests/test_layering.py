"""The layers of DESIGN section 5, read from the imports themselves."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import llmos_stream
from llmos_stream.config.plugins import STRATEGIES

# One worker reads the code: each would read all of it.
pytestmark = pytest.mark.xdist_group("code")

_PACKAGE = Path(llmos_stream.__file__).parent
_STDLIB = sys.stdlib_module_names
_BASE = {"errors", "types", "config"}
_PURE_ROOMS = {"codec", "wire", "core"}
_GROUND = _BASE | {"runtime", "telemetry"}
_LOG = _GROUND | _PURE_ROOMS | {"broker", "storage", "log"}

# Room: the third-party libraries and the rooms of the package that it may import.
_MAY: dict[str, tuple[set[str], set[str]]] = {
    "errors": (set(), set()),
    "types": (set(), set()),
    "config": ({"pydantic"}, {"errors"}),
    "codec": ({"torch", "numpy", "zstandard"}, _BASE),
    "wire": ({"msgpack", "orjson"}, _BASE),
    "core": ({"torch"}, _BASE),
    "broker": ({"aiokafka"}, _BASE),
    "storage": (set(), _BASE | {"wire"}),
    "training": (
        {"torch", "numpy", "sklearn", "transformers", "peft", "safetensors", "gguf", "jinja2", "pydantic"},
        _BASE | {"codec"},
    ),
    "telemetry": ({"prometheus_client", "opentelemetry"}, _BASE | {"wire"}),
    "runtime": ({"orjson"}, _GROUND),
    "web": ({"orjson", "prometheus_client", "starlette", "uvicorn"}, _GROUND),
    "log": ({"torch", "orjson"}, _LOG),
    "reporting": ({"rich", "plotly", "orjson"}, _BASE | {"wire"}),
    "tracking": ({"mlflow", "pandas", "tensorboard", "wandb"}, _LOG | {"reporting"}),
    "roles": ({"torch", "orjson", "safetensors"}, _LOG | {"training"}),
    "federated": (
        {"torch", "numpy", "lightning", "pytorch_lightning", "transformers"},
        _LOG | {"registry", "roles", "training", "__init__"},
    ),
    "replay": ({"torch"}, _LOG | {"roles", "training"}),
    "registry": ({"torch", "orjson", "fsspec", "prometheus_client", "safetensors"}, _LOG),
    "inference": (
        {"fastapi", "fastapi_offline", "starlette", "uvicorn", "pydantic", "orjson", "prometheus_client", "torch"},
        _LOG | {"registry", "replay", "training", "web"},
    ),
    "dashboard": (
        {"starlette", "plotly", "orjson", "pydantic", "zstandard"},
        _LOG | {"registry", "reporting", "web"},
    ),
    "testing": ({"torch", "orjson", "tokenizers", "transformers"}, _LOG | {"roles", "training"}),
    "scenarios": ({"torch", "numpy"}, _BASE | {"training", "simulation"}),
    "scaffold": ({"numpy"}, {"errors"}),
    "simulation": (
        {"torch", "numpy", "pydantic", "orjson", "pandas", "pyarrow"},
        _BASE | {"codec", "core", "reporting", "training", "__init__"},
    ),
    "demo": (set(), _LOG | {"federated", "training"}),
    "cli": (
        {"rich", "pydantic", "pydantic_core", "orjson", "safetensors", "torch"},
        _LOG
        | {
            "dashboard",
            "demo",
            "federated",
            "inference",
            "registry",
            "replay",
            "reporting",
            "roles",
            "scaffold",
            "simulation",
            "scenarios",
            "training",
            "web",
            "tracking",
            "__init__",
        },
    ),
    "strategy": (set(), _BASE | {"core"}),
    "__main__": (set(), {"cli"}),
    "__init__": (set(), {"federated", "tracking", "training"}),
}
_PURE = ("codec", "wire", "core")
_NOT_PURE = {"asyncio", "time", "socket", "subprocess", "threading", "aiokafka", "random"}


def _modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(_PACKAGE.rglob("*.py")):
        inside = path.relative_to(_PACKAGE)
        if inside.parts[:2] == ("scaffold", "templates"):
            continue  # no modules of the package: what `llmos-stream new` writes for its users
        yield (inside.parts[0] if len(inside.parts) > 1 else inside.stem), path


def _of(room: str) -> list[Path]:
    """The modules of a room, of which there is at least one."""
    paths = [path for name, path in _modules() if name == room]
    assert paths, room
    return paths


@cache
def _nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text())))


@cache
def _imports(path: Path) -> set[str]:
    """Dotted names of everything imported in a file, functions included."""
    found = set()
    for node in _nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            if node.module == "llmos_stream":
                found |= {f"llmos_stream.{alias.name}" for alias in node.names if alias.name != "__version__"}
    return found


@pytest.mark.parametrize("room", _MAY)
def test_a_module_imports_only_what_its_room_may(room: str) -> None:
    libraries, rooms = _MAY[room]
    for path in _of(room):
        for name in _imports(path):
            top, _, rest = name.partition(".")
            if top == "llmos_stream":
                target = rest.split(".")[0] or "__init__"
                assert target == room or target in rooms, f"{path}: {room} may not import {name}"
            elif top not in _STDLIB:
                assert top in libraries, f"{path}: {room} may not import {name}"


@pytest.mark.parametrize("room", _PURE)
def test_the_pure_rooms_know_no_clock_no_loop_and_no_chance(room: str) -> None:
    # One payload may be decoded by several threads, which its caller starts: codec has the lock between them.
    allowed = {"threading"} if room == "codec" else set()
    for path in _of(room):
        assert not {name.split(".")[0] for name in _imports(path)} & (_NOT_PURE - allowed), path


def test_tasks_are_made_in_runtime_alone() -> None:
    makers = {"create_task", "ensure_future", "run_coroutine_threadsafe"}
    for room, path in _modules():
        if room == "runtime":
            continue
        used = {node.attr for node in _nodes(path) if isinstance(node, ast.Attribute)}
        assert not used & makers, path


def test_nothing_unpickles_or_imports_by_name() -> None:
    for _, path in _modules():
        assert not {name.split(".")[0] for name in _imports(path)} & {"pickle", "marshal", "shelve", "dill"}, path
        if path.relative_to(_PACKAGE) == Path("config/plugins.py"):
            continue  # imports what local settings name and what is installed, never what a message says
        used = {node.attr for node in _nodes(path) if isinstance(node, ast.Attribute)}
        used |= {node.id for node in _nodes(path) if isinstance(node, ast.Name)}
        assert not used & {"import_module", "entry_points", "__import__", "EntryPoint"}, path


def test_a_strategys_name_stands_in_core_and_config_alone() -> None:
    for room, path in _modules():
        if room not in ("core", "config"):
            found = {node.value for node in _nodes(path) if isinstance(node, ast.Constant)}
            assert not found & set(STRATEGIES.built_in), path


def test_the_table_names_every_room() -> None:
    assert {room for room, _ in _modules()} == set(_MAY)


def test_roles_are_entered_by_few_and_the_two_large_ones_not_by_each_other() -> None:
    """Only replay's shadow is an aggregator of its own; the others that run roles are the faces that users see."""
    for room, path in _modules():
        entered = {name for name in _imports(path) if name.startswith("llmos_stream.roles")}
        inside = path.relative_to(_PACKAGE)
        if room != "roles":
            assert not entered or room in {"federated", "testing", "cli"} or inside == Path("replay/shadow.py"), path
        for one, other in (("aggregator", "client"), ("client", "aggregator")):
            if inside.parts[:2] == ("roles", one):
                assert not [name for name in entered if name.startswith(f"llmos_stream.roles.{other}")], path


def test_what_is_for_tests_is_imported_by_tests_alone() -> None:
    for room, path in _modules():
        assert room == "testing" or not {name for name in _imports(path) if name.startswith("llmos_stream.testing")}, (
            path
        )


def test_a_record_without_a_value_is_met_in_one_place() -> None:
    found = [path for _, path in _modules() if "record.value or b" in path.read_text()]
    assert [path.relative_to(_PACKAGE) for path in found] == [Path("log/stream.py")]


def test_no_room_but_core_and_config_knows_a_strategy_by_name() -> None:
    for room, path in _modules():
        if room in {"core", "config"}:
            continue
        names = {node.value for node in _nodes(path) if isinstance(node, ast.Constant)}
        assert not names & {"fedbuff", "fedasync", "median", "trimmed_mean", "krum", "multi_krum", "norm_bound"}, path


_FACES = {
    "run_aggregator",
    "run_client",
    "run_evaluator",
    "evaluate_once",
    "run_archiver",
    "run_inference",
    "run_deployer",
    "run_shadow",
    "running_federation",
}


def test_broker_and_all_settings_go_together_through_the_faces_of_roles_alone() -> None:
    for room, path in _modules():
        for node in _nodes(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = (*node.args.args, *node.args.kwonlyargs)
                # An address in a user's own words is no broker.
                names = {one.arg for one in arguments if not ast.unparse(one.annotation or one).startswith("str ")}
                assert room == "cli" or node.name in _FACES or not {"broker", "settings"} <= names, (path, node.name)


def test_time_comes_from_the_clock_that_a_role_is_handed() -> None:
    clocks = {"monotonic", "perf_counter", "time_ns", "time"}
    for room, path in _modules():
        if room not in {"roles", "log", "federated"}:
            continue
        for node in _nodes(path):
            if isinstance(node, ast.ImportFrom) and node.module == "time":
                assert not {alias.name for alias in node.names} & clocks, path
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "time":
                assert node.attr not in clocks, path
