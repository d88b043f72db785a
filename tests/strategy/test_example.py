"""The documentation's example: installed from a package of its own, run, and replayed from the log."""

import sys
from pathlib import Path

import pytest
import torch

from llmos_stream.broker import Broker, MemoryBroker
from llmos_stream.config import Settings, plugins
from llmos_stream.core import Rule
from llmos_stream.errors import ConfigError, Rejected
from llmos_stream.log.versions import Version
from llmos_stream.replay.audit import audit
from llmos_stream.replay.rebuild import RebuildOutcome
from llmos_stream.replay.whatif import Change, WhatIf
from tests.replay.aids import outcomes, replay_log, verdicts_of
from tests.roles.aids import aggregator, delta_of, settings_for, update
from tests.strategy.packages import example, installed

ONLY_WHERE = "only where aggregation.strategy of the settings here names it too"
ENTRY = "[llmos_stream.strategies]\ntempered = tempered:Tempered\n"


def settings_of(federation: str, strategy: str = "tempered") -> Settings:
    rule = {"strategy": strategy, "buffer_size": 2, "options": {"power": 0.5}}
    return settings_for(federation, aggregation=rule, versions={"full_every": 1})


async def run(broker: Broker, settings: Settings) -> Version:
    """Two versions of two updates each; gives the second."""
    async with aggregator(broker, settings) as running:
        for number in range(4):
            examples = 900 if number % 2 else 100
            sent = update(delta_of(1.0 + number), sequence=number, base_version=number // 2, num_examples=examples)
            await running.send(sent)
            if number == 1:
                await running.version(1)
        return await running.version(2)


async def test_it_runs_and_is_replayed_and_without_it_a_replay_says_what_to_install(
    broker: Broker, federation: str, tmp_path: Path
) -> None:
    settings = settings_of(federation)
    with installed(tmp_path, "tempered", example(), ENTRY):
        version = await run(broker, settings)
        assert version.head.rule["packages"] == {"aggregation": ["tempered", "1.2"]}
        first = delta_of((10 * 1.0 + 30 * 2.0) / 40)
        weights = version.weights
        assert torch.allclose(weights, first + delta_of((10 * 3.0 + 30 * 4.0) / 40))
        async with replay_log(broker, settings_for(federation)) as log:  # the settings here need not name it
            assert outcomes(await verdicts_of(log)) == [
                RebuildOutcome.INITIAL,
                RebuildOutcome.MATCH,
                RebuildOutcome.MATCH,
            ]
            found = await audit(log, 2)
            assert [item.share for item in found.items] == pytest.approx([0.25, 0.75])
            assert found.share == "weight x clip / sum of tempered examples"
    async with replay_log(broker, settings_for(federation)) as log:
        verdicts = await verdicts_of(log)
        assert outcomes(verdicts) == [RebuildOutcome.INITIAL, RebuildOutcome.GONE, RebuildOutcome.GONE]
        assert verdicts[1].detail.endswith(
            "this version was made by strategy tempered of package tempered 1.2: pip install tempered==1.2"
        )
        assert [item.share for item in (await audit(log, 2)).items] == [None, None]


async def test_what_if_takes_its_options(federation: str, tmp_path: Path) -> None:
    broker, settings = MemoryBroker(), settings_of(federation)
    with installed(tmp_path, "tempered", example(), ENTRY):
        await run(broker, settings)
        async with replay_log(broker, settings) as log:
            even = Change(settings={"aggregation": {"options": {"power": 0.0}}})
            told = await WhatIf(log, even).run(log.index.numbers)
            assert torch.allclose(told.final.weights, delta_of(1.5 + 3.5))
            other = Change(settings={"aggregation": {"strategy": "median"}})
            assert (await WhatIf(log, other).run(log.index.numbers)).folded == 4
            with pytest.raises(
                ConfigError, match=r"aggregation\.options: power: Input should be less than or equal to 1"
            ):
                await WhatIf(log, Change(settings={"aggregation": {"options": {"power": 7}}})).run(log.index.numbers)


async def test_another_version_of_the_package_is_told_where_the_bytes_differ(federation: str, tmp_path: Path) -> None:
    broker, settings = MemoryBroker(), settings_of(federation)
    with installed(tmp_path / "old", "tempered", example(), ENTRY):
        await run(broker, settings)
    changed = example().replace("* discount", "* discount * 0.5")
    with installed(tmp_path / "new", "tempered", changed.replace("def divisor", "def shares_none"), ENTRY, "1.3"):
        async with replay_log(broker, settings) as log:
            verdict = (await verdicts_of(log))[1]
    assert verdict.outcome is RebuildOutcome.DIFFERS
    assert verdict.detail == "made by tempered 1.2, here 1.3"


async def test_a_path_is_imported_only_where_local_settings_name_it(
    federation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker, path = MemoryBroker(), "tempered_path:Tempered"
    (tmp_path / "tempered_path.py").write_text(example())
    monkeypatch.syspath_prepend(tmp_path)
    settings = settings_of(federation, path)
    async with aggregator(broker, settings) as running:
        for number in range(2):
            await running.send(update(delta_of(1.0), sequence=number))
        assert "packages" not in (await running.version(1)).head.rule
    async with replay_log(broker, settings) as log:
        assert outcomes(await verdicts_of(log)) == [RebuildOutcome.INITIAL, RebuildOutcome.MATCH]
    monkeypatch.delitem(sys.modules, "tempered_path")
    plugins._by_path.cache_clear()
    (tmp_path / "tempered_path.py").write_text("raise AssertionError('imported because a log names it')")
    async with replay_log(broker, settings_for(federation)) as log:
        verdict = (await verdicts_of(log))[1]
        told = Change(settings={"server_optimizer": {"lr": 0.5}})
        with pytest.raises(Rejected, match=ONLY_WHERE):
            await WhatIf(log, told).run(log.index.numbers)
    assert verdict.outcome is RebuildOutcome.GONE
    assert ONLY_WHERE in verdict.detail


def test_a_name_that_is_not_there_is_told_what_comes_near() -> None:
    for name, near in (("medain", "did you mean median"), ("krumm", "did you mean krum"), ("zzz", "there are fedbuff")):
        with pytest.raises(ConfigError, match=f"aggregation.strategy: no strategy '{name}' is installed; .*{near}"):
            Rule(settings_for("f", aggregation={"strategy": name}).aggregation).strategy()
