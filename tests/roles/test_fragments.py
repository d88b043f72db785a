"""A model in three fragments: each moves by itself, through crashes and rubbish, and a replay makes the same bytes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmos_stream.broker import Broker, MemoryBroker
from llmos_stream.codec import Layout, decode, encode, with_buffers
from llmos_stream.config import AggregationSettings, CodecSettings, Settings
from llmos_stream.errors import ConfigError, TaskError
from llmos_stream.replay.audit import Presence, audit
from llmos_stream.replay.rebuild import RebuildOutcome
from llmos_stream.replay.shadow import run_shadow, shadow_settings
from llmos_stream.replay.whatif import Change, WhatIf
from llmos_stream.roles.aggregator import Initial
from llmos_stream.roles.aggregator.preflight import check_fits
from llmos_stream.roles.client import ClientState
from llmos_stream.roles.client.carry import Cut
from llmos_stream.roles.client.outbox import Outbox
from llmos_stream.testing import RunningFederation, running_federation, running_role
from llmos_stream.testing import updates as testing
from llmos_stream.training.shared_model import Trained
from llmos_stream.types import Fragment, VersionKind
from tests.replay.aids import outcomes, replay_log, verdicts_of
from tests.roles.aids import FLOAT32, settings_for
from tests.roles.test_pipeline import Federation, _client, _settings

LAYOUT = Layout.of(
    {"a": torch.zeros(40), "b": torch.zeros(3, 10), "c": torch.zeros(50), "mean": torch.zeros(2)}, ["mean"]
)
CUT = LAYOUT.fragments(3)
KEPT = {"versions": {"full_every": 4}}


def _fragments(federation: str, **sections: dict[str, Any]) -> Settings:
    aggregation = {"fragments": 3, "buffer_size": 2, **sections.pop("aggregation", {})}
    return settings_for(federation, **{"aggregation": aggregation, **KEPT, **sections})


def _running(broker: Broker, settings: Settings) -> Any:
    return running_federation(Initial(LAYOUT, torch.zeros(LAYOUT.numel)), settings, broker)


def _records(fragment: Fragment, value: float, measured: float = 1.0, **changes: Any) -> list[bytes]:
    """An update that adds `value` to each parameter of a fragment."""
    values = torch.full((fragment.buffer_elements,), measured)
    payload = list(with_buffers(encode(torch.full((fragment.parameters,), value), FLOAT32), values))
    its = {"layout_digest": fragment.digest, "range": fragment.range, **changes}
    return testing.update_records(testing.update_head(LAYOUT, payload, **its), payload)


async def _send(running: RunningFederation, place: int, client: str, sequence: int, base: int, value: float) -> int:
    records = _records(CUT[place], value, client_id=client, sequence=sequence, base_version=base)
    return await running.send(records, client)


def _expected(*values: float, measured: float = 0.0) -> Tensor:
    """Weights that are the same in all parameters of a fragment."""
    parts = [torch.full((fragment.parameters,), value) for fragment, value in zip(CUT, values, strict=True)]
    return torch.cat([*parts, torch.full((LAYOUT.buffer_elements,), measured)])


async def test_each_fragment_moves_by_itself_and_all_are_replayed(broker: Broker, federation: str) -> None:
    settings = _fragments(
        federation,
        aggregation={"clip_multiple": 0.0},
        staleness={"kind": "polynomial"},
        server_optimizer={"momentum": 0.5},
    )
    sums, speeds, weights = [0.0] * 3, [0.0] * 3, [0.0] * 3
    async with _running(broker, settings) as running:
        version = await running.version(0)
        for number in range(1, 10):
            place, base = (2 * number) % 3, max(0, number - 2)
            await _send(running, place, "ann", 2 * number, base, 1.0)
            await _send(running, place, "bob", 2 * number + 1, number - 1, 3.0)
            version = await running.version(number)
            stale = (number - base) ** -0.5
            sums[place] = (10 * 1.0 * stale + 10 * 3.0) / 20
            speeds[place] = 0.5 * speeds[place] + sums[place]
            weights[place] += speeds[place]
            assert version.head.range == CUT[place].range
            assert version.head.kind is (VersionKind.FULL if number % 4 == 0 else VersionKind.FRAGMENT)
            parameters = LAYOUT.parts(version.weights)[0]
            torch.testing.assert_close(parameters, LAYOUT.parts(_expected(*weights))[0], rtol=0.02, atol=0.05)
            assert version.head.payload_size < 4 * LAYOUT.numel + 100
    assert LAYOUT.parts(version.weights)[1].tolist() == [1.0, 1.0]  # they move with the last fragment
    async with replay_log(broker, settings) as log:
        verdicts = await verdicts_of(log)
        assert outcomes(verdicts) == [RebuildOutcome.INITIAL] + [RebuildOutcome.MATCH] * 9
        assert [verdict.rebuilt_digest for verdict in verdicts] == [verdict.published_digest for verdict in verdicts]
        # From the middle of a chain of deltas it is what the log kept of what readers are owed that counts.
        assert outcomes(await verdicts_of(log, range(7, 10))) == [RebuildOutcome.MATCH] * 3
        result = await WhatIf(log, Change()).run(log.index.numbers)
        assert (result.digest, result.folded) == (result.original_digest, 18)
        without = await WhatIf(log, Change(without=frozenset({"ann"}))).run(log.index.numbers)
        assert (without.removed, sum(without.refused.values())) == (9, 0)
        found = await audit(log, 9)
        assert {item.presence for item in found.items} == {Presence.PRESENT}
        assert [item.base_version for item in found.items] == [7, 8]
        with pytest.raises(ConfigError, match=r"aggregation\.fragments: the updates of this run are cut into 3"):
            await WhatIf(log, Change(settings={"aggregation": {"fragments": 1}})).run(log.index.numbers)


async def test_a_shadow_of_the_same_rule_makes_the_same_versions(federation: str) -> None:
    broker, settings = MemoryBroker(), _fragments(federation, stop={"max_versions": 5}, versions={"full_every": 9})
    own = settings.changed(stop={"max_versions": None})
    async with _running(broker, settings) as running:
        await running.version(0)
        await _send(running, 1, "ann", 0, 0, 1.0)  # waits while another fragment moves
        for number, place in enumerate((0, 1, 2, 1, 0), 1):
            for client in ("ann", "bob")[1 if number == 2 else 0 :]:
                await _send(running, place, client, number, max(0, number - 2), float(number))
            await running.version(number)
    cut = own.changed(aggregation={"fragments": 2})
    with pytest.raises(ConfigError, match=r"2 are wanted, and the versions of federation .* move by 3"):
        async with running_role(lambda *given: run_shadow(broker, cut, "cut", *given)) as role:
            await role.task
    async with running_role(lambda *given: run_shadow(broker, own, "s", *given)) as role:
        end = await role.task
    assert end is not None
    assert (end.reason, end.version) == ("live_ended", 5)
    found = []
    for kept in (settings, shadow_settings(settings, "s")):
        async with replay_log(broker, kept) as log:
            assert outcomes(await verdicts_of(log)) == [RebuildOutcome.INITIAL] + [RebuildOutcome.MATCH] * 5
            heads = [entry.head for entry in log.index.versions.values()]
        found.append([(head.weights_digest, head.range) for head in heads])
    assert found[0] == found[1]


async def test_what_waits_for_its_fragment_is_counted_once_through_a_crash(broker: Broker, federation: str) -> None:
    settings = _fragments(federation)
    async with _running(broker, settings) as running:
        await _send(running, 1, "ann", 0, 0, 1.0)
        for number, place in enumerate((0, 2, 0), 1):
            await _send(running, place, "ann", number, number - 1, 1.0)
            await _send(running, place, "bob", number, number - 1, 1.0)
            await running.version(number)
        await running.kill()
    async with _running(broker, settings) as running:
        await _send(running, 1, "bob", 4, 3, 3.0)
        version = await running.version(4)
        repeat = await _send(running, 1, "ann", 0, 0, 1.0)
        # The six that are in a version were read again, too: what waited held their place.
        duplicate = (await running.events("update_duplicate", 7))[-1]
        versions = [await running.version(number) for number in range(5)]
    assert (duplicate.data["sequence"], duplicate.data["offset"]) == (0, repeat)
    assert version.head.range == CUT[1].range
    named = [(item.client_id, item.sequence) for version in versions for item in version.head.manifest]
    assert sorted(named) == sorted(
        [("ann", 0), ("ann", 1), ("ann", 2), ("ann", 3), ("bob", 1), ("bob", 2), ("bob", 3), ("bob", 4)]
    )
    async with replay_log(broker, settings) as log:
        assert outcomes(await verdicts_of(log)) == [RebuildOutcome.INITIAL] + [RebuildOutcome.MATCH] * 4


RANGES = [
    ("overlapping", (0, CUT[0].end + 5), "wrong_layout"),
    ("inside", (5, 20), "wrong_layout"),
    ("two of them", (0, CUT[1].end), "wrong_layout"),
    ("the whole", (0, LAYOUT.numel), "wrong_layout"),
    ("outside", (LAYOUT.numel, LAYOUT.numel + 40), "wrong_layout"),
    ("another's digest", CUT[1].range, "wrong_layout"),
    ("none", None, "wrong_layout"),
    ("far outside", (2**62, 2**63 - 1), "wrong_layout"),
]


async def test_ranges_that_no_fragment_has_go_to_quarantine(federation: str) -> None:
    async with _running(MemoryBroker(), _fragments(federation)) as running:
        offsets = [
            await running.send(_records(CUT[0], 1.0, client_id="mal", sequence=place, range=elements), "mal")
            for place, (_, elements, _) in enumerate(RANGES)
        ]
        await running.send(
            _records(CUT[1], 1.0, client_id="mal", sequence=50, range=None, layout_digest=LAYOUT.digest), "mal"
        )
        for place in range(3):  # several fragments from one client are as it should be
            await _send(running, place, "ann", place, 0, 1.0)
            await _send(running, place, "bob", place, 0, 1.0)
        version = await running.version(3)
        entries = await running.quarantined(len(RANGES) + 1)
    torch.testing.assert_close(version.weights, _expected(1.0, 1.0, 1.0, measured=1.0), rtol=0, atol=0.02)
    for (what, _, reason), offset in zip(RANGES, offsets, strict=True):
        assert next(entry["reason"] for entry in entries if entry["offset"] == offset) == reason, what
    assert any("an update of the whole model, where the model is cut into 3" in entry["detail"] for entry in entries)


async def test_clients_train_a_model_in_fragments_to_its_target(federation: str, tmp_path: Path) -> None:
    broker = MemoryBroker()
    settings = _settings(federation, aggregation={"buffer_size": 2, "fragments": 2}, versions={"full_every": 5})
    run = Federation(broker, settings, [_client(settings, shard) for shard in range(3)], tmp_path)
    end = await run.run()
    assert end is not None
    assert end.reason == "target"
    async with replay_log(broker, settings) as log:
        verdicts = await verdicts_of(log)
        assert {verdict.outcome for verdict in verdicts[1:]} == {RebuildOutcome.MATCH}
        heads = [entry.head for entry in log.index.versions.values()]
    moved = {head.range for head in heads if head.parent is not None}
    named = [(item.client_id, item.sequence) for head in heads for item in head.manifest]
    assert len(moved) == 2
    assert len(named) == len(set(named)) > end.version


@pytest.mark.parametrize("codec", [{"name": "float32"}, {"name": "topk", "fraction": 0.1}])
def test_all_that_was_learnt_is_sent_or_carried_or_owed(codec: dict[str, Any]) -> None:
    """Whatever the order of the turns, and wherever the versions are."""
    generator = torch.Generator().manual_seed(1)
    learnt, sent = torch.zeros(LAYOUT.parameters), torch.zeros(LAYOUT.parameters)
    version, moved = torch.zeros(LAYOUT.numel), None
    with ClientState("c", None) as state:
        outbox = Outbox(CodecSettings.model_validate(codec), "c", LAYOUT, state)
        outbox.open()
        for number in range(9):
            cut = Cut(CUT, moved)
            start = outbox.start(version, cut)
            carried = (start - version)[: LAYOUT.parameters]
            step = torch.randn(LAYOUT.parameters, generator=generator)
            learnt += step
            measured = torch.full((LAYOUT.buffer_elements,), float(number))
            outbox = Outbox(CodecSettings.model_validate(codec), "c", LAYOUT, state)  # over another connection
            outbox.open()
            update, is_new = outbox.put(Trained(step.clone(), number, 10, {}, 1.0, buffers=measured))
            assert is_new
            fragment = next(one for one in CUT if one.range == update.head.range)
            assert update.head.layout_digest == fragment.digest
            own = slice(fragment.begin, fragment.begin + fragment.parameters)
            buffers = torch.zeros(fragment.buffer_elements)
            delta = decode(update.parts, update.head.codec, fragment.parameters, buffers=buffers)
            if codec["name"] == "float32":
                torch.testing.assert_close(delta, (carried + step)[own])
            assert buffers.tolist() == [float(number)] * fragment.buffer_elements
            sent[own] += delta
            outbox.settle(update.head.sequence)
            moved = fragment.range  # as the version that is made of it
            version = torch.randn(LAYOUT.numel, generator=generator)
        left = outbox.start(version, Cut(CUT, moved)) - version
        owed = state.residual()
    total = sent + left[: LAYOUT.parameters] + (0.0 if owed is None else owed)
    torch.testing.assert_close(total, learnt, rtol=1e-4, atol=1e-4)
    assert (owed is None) == (codec["name"] == "float32")


def test_a_model_that_moves_as_a_whole_carries_nothing() -> None:
    with ClientState("c", None) as state:
        outbox = Outbox(CodecSettings(name="float32"), "c", LAYOUT, state)
        weights = torch.ones(LAYOUT.numel)
        update, _ = outbox.put(Trained(torch.ones(LAYOUT.parameters), 0, 1, {}, 1.0, buffers=torch.ones(2)))
        assert outbox.start(weights, Cut()) is weights
    assert (update.head.range, update.head.layout_digest) == (None, LAYOUT.digest)


def test_weights_that_are_not_finite_are_not_carried() -> None:
    delta = torch.ones(LAYOUT.parameters)
    delta[-1] = torch.inf  # in a fragment whose turn it is not
    with ClientState("c", None) as state:
        outbox = Outbox(CodecSettings(name="float32"), "c", LAYOUT, state)
        outbox.start(torch.zeros(LAYOUT.numel), Cut(CUT))
        with pytest.raises(TaskError, match="not finite"):
            outbox.put(Trained(delta, 0, 1, {}, 1.0, buffers=torch.ones(2)))
        assert outbox.unsent() is None
        assert torch.equal(outbox.start(torch.zeros(LAYOUT.numel), Cut(CUT)), torch.zeros(LAYOUT.numel))


async def test_a_run_is_not_cut_anew(federation: str) -> None:
    broker = MemoryBroker()
    async with _running(broker, _fragments(federation)) as running:
        await running.version(0)
    settings = _fragments(federation, aggregation={"fragments": 2})
    with pytest.raises(ConfigError, match=r"aggregation\.fragments: 2 are wanted, and the versions of .* move by 3"):
        async with _running(broker, settings) as running:
            await running.task


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"aggregation": {"fragments": 9}}, "9 fragments of a model that has 3 tensors of parameters; ask for fewer"),
        ({"guard": {"on_collapse": "rollback"}}, "guard.on_collapse: a version that goes back moves the whole model"),
    ],
)
def test_what_does_not_go_with_fragments_is_refused(sections: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_fits(LAYOUT, _fragments("ward", **sections))
    check_fits(LAYOUT, _fragments("ward"))
    assert AggregationSettings().fragments == 1
