"""What is exported loads in peft and in transformers, and answers as the version itself does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmos_stream.cli.export import write_folder
from llmos_stream.codec import Layout
from llmos_stream.config import Settings
from llmos_stream.errors import ConfigError
from llmos_stream.registry import KeptVersion
from llmos_stream.training import load_task
from llmos_stream.training.llm.versions import VersionedModel
from llmos_stream.training.shared_model import SharedModel
from tests.training.llm.aids import SENTENCES, llm_settings

# peft asks transformers by a name that transformers 5 warns of
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

_MODES = ("ffa", "alternate", "separate", "exact")


def _version(settings: Settings, seed: int = 0) -> KeptVersion:
    """One in which nothing that is shared is as it was."""
    task = load_task(settings.task, settings.client)
    shared = SharedModel(task.model(), task.share)
    noise = torch.randn(shared.layout.numel, generator=torch.Generator().manual_seed(seed)) / 10
    return KeptVersion(3, shared.layout, shared.weights() + noise, b"", archived=False)


def _own(settings: Settings, layout: Layout, weights: Tensor) -> tuple[VersionedModel, Tensor]:
    made = VersionedModel(settings.task)
    made.load(layout, weights)
    tokens = made.tokenizer(SENTENCES[0], return_tensors="pt").input_ids
    return made, _logits(made.model, tokens)


def _logits(model: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(tokens).logits
    return found


@pytest.mark.parametrize("mode", _MODES)
def test_an_adapter_is_what_peft_puts_on_the_base(mode: str, tiny: Path, tmp_path: Path) -> None:
    settings = llm_settings(tiny, lora={"aggregation": mode, "rank": 2, "alpha": 3, "targets": "all-linear"})
    version = _version(settings)
    tensors, error = write_folder(version, tmp_path / "adapter", settings, merged=False, rank=64)
    made, expected = _own(settings, version.layout, version.weights)
    base = AutoModelForCausalLM.from_pretrained(tiny)
    tokens = made.tokenizer(SENTENCES[0], return_tensors="pt").input_ids
    before = _logits(base, tokens)
    adapted = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    torch.testing.assert_close(_logits(adapted, tokens), expected, rtol=1e-3, atol=1e-4)
    assert (before - expected).abs().max() > 0.01
    assert tensors == 2 * 7 * 2
    assert error < 1e-6
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_an_adapter_of_less_rank_says_what_it_leaves_out(tiny: Path, tmp_path: Path) -> None:
    settings = llm_settings(tiny, lora={"aggregation": "exact", "rank": 2})
    version = _version(settings)
    errors = []
    for rank in (None, 8, 31):
        _, error = write_folder(version, tmp_path / str(rank), settings, merged=False, rank=rank)
        errors.append(error)
    assert 1 > errors[0] > errors[1] > errors[2] > 0
    base = AutoModelForCausalLM.from_pretrained(tiny)
    adapted = PeftModel.from_pretrained(base, str(tmp_path / "8")).merge_and_unload()
    plain = dict(AutoModelForCausalLM.from_pretrained(tiny).named_parameters())
    left_out = added = 0.0
    views = version.layout.views(version.weights)
    for name, weight in adapted.named_parameters():
        whole = views.get(name.replace(".weight", ".base_layer.weight"))
        if whole is not None:
            left_out += float((whole - weight.detach()).square().sum())
            added += float((whole - plain[name].detach()).square().sum())
    assert errors[1] == pytest.approx((left_out / added) ** 0.5, rel=1e-3)


@pytest.mark.parametrize("mode", _MODES)
def test_a_merged_version_is_a_model_of_its_own(mode: str, tiny: Path, tmp_path: Path) -> None:
    settings = llm_settings(tiny, lora={"aggregation": mode, "rank": 2})
    version = _version(settings)
    write_folder(version, tmp_path / "merged", settings, merged=True, rank=None)
    made, expected = _own(settings, version.layout, version.weights)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    tokens = tokenizer(SENTENCES[0], return_tensors="pt").input_ids
    assert torch.equal(tokens, made.tokenizer(SENTENCES[0], return_tensors="pt").input_ids)
    torch.testing.assert_close(_logits(merged, tokens), expected, rtol=1e-3, atol=1e-4)
    assert tokenizer.chat_template == made.tokenizer.chat_template


def test_a_model_that_is_shared_as_a_whole_is_exported_merged(tiny: Path, tmp_path: Path) -> None:
    settings = llm_settings(tiny, lora={"rank": 0})
    version = _version(settings)
    with pytest.raises(ConfigError, match="export it merged"):
        write_folder(version, tmp_path / "adapter", settings, merged=False, rank=None)
    assert not list(tmp_path.iterdir())
    write_folder(version, tmp_path / "merged", settings, merged=True, rank=None)
    _, expected = _own(settings, version.layout, version.weights)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    tokens = AutoTokenizer.from_pretrained(tmp_path / "merged")(SENTENCES[0], return_tensors="pt").input_ids
    torch.testing.assert_close(_logits(merged, tokens), expected, rtol=1e-3, atol=1e-4)


def test_one_model_answers_for_one_version_after_the_other(tiny: Path) -> None:
    settings = llm_settings(tiny, lora={"aggregation": "ffa", "rank": 2})
    made = VersionedModel(settings.task)
    tokens = made.tokenizer(SENTENCES[0], return_tensors="pt").input_ids
    found = []
    for seed in (1, 2, 1):
        version = _version(settings, seed)
        made.load(version.layout, version.weights)
        found.append(_logits(made.model, tokens))
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])
    answer = made.model.generate(tokens, max_new_tokens=4, do_sample=False)
    assert answer.shape[1] > tokens.shape[1]


def test_a_version_of_another_model_is_refused(tiny: Path, tmp_path: Path) -> None:
    version = _version(llm_settings(tiny, lora={"rank": 3}))
    settings = llm_settings(tiny, lora={"rank": 2})
    with pytest.raises(ConfigError, match="the model is not that of the version"):
        write_folder(version, tmp_path / "adapter", settings, merged=False, rank=None)
    with pytest.raises(ConfigError, match="only versions of the task llm"):
        write_folder(version, tmp_path / "adapter", settings.changed(task={"entry": "digits"}), merged=True, rank=None)
