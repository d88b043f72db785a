"""Who may take part, by the settings and by orders: the pure part, and what lies in the control topic."""

import orjson
import pytest

from llmos_stream.config import ClientSettings, CodecSettings, ParticipationSettings
from llmos_stream.config.orders import ORDERED, ordered
from llmos_stream.core import client_policy as policy
from llmos_stream.core.participation import check_room, check_wanted, why_unwanted
from llmos_stream.errors import ConfigError, Reason, Rejected
from llmos_stream.roles.aggregator.gate import rules_of
from llmos_stream.types import ClientOrder, ParticipationRules
from llmos_stream.wire.control import dump_order, dump_participation, load_order, load_participation
from tests.roles.aids import update_head

OPEN = ParticipationRules()


@pytest.mark.parametrize(
    ("clients", "wanted"),
    [("*", True), ("ward-*", True), ("lab-3,ward-7", True), ("ward-[0-5]", False), ("ward", False), ("Ward-*", False)],
)
def test_a_client_is_wanted_by_id_or_glob(clients: str, wanted: bool) -> None:
    rules = rules_of(ParticipationSettings(clients=clients))
    assert (why_unwanted("ward-7", rules, None) is None) is wanted


@pytest.mark.parametrize("clients", ["", "ward 7", "a,,b", "a;b", "x" * 200])
def test_patterns_that_make_no_sense(clients: str) -> None:
    with pytest.raises(ValueError, match="ids and globs"):
        ParticipationSettings(clients=clients)


def test_a_client_that_is_forbidden_hears_the_reason() -> None:
    order = ClientOrder(forbidden=True, reason="broken sensor")
    assert why_unwanted("ward-7", OPEN, order) == "the operator has forbidden client ward-7: broken sensor"
    assert why_unwanted("ward-7", OPEN, ClientOrder(settings={"client.epochs": 2})) is None


def test_updates_are_refused_for_a_reason_of_their_own() -> None:
    head = update_head([b""], client_id="ward-7", num_examples=9)
    check_wanted(head, OPEN, None)
    for rules, order, reason in (
        (ParticipationRules(("lab-*",)), None, Reason.NOT_WANTED),
        (OPEN, ClientOrder(forbidden=True), Reason.NOT_WANTED),
        (ParticipationRules(min_examples=10), None, Reason.TOO_FEW_EXAMPLES),
    ):
        with pytest.raises(Rejected) as caught:
            check_wanted(head, rules, order)
        assert caught.value.reason is reason
    check_wanted(head, ParticipationRules(min_examples=9), None)


def test_room_is_for_those_who_came_first() -> None:
    rules = ParticipationRules(at_once=2)
    check_room(known=False, others=1, rules=rules)
    check_room(known=True, others=2, rules=rules)
    check_room(known=False, others=1000, rules=OPEN)
    with pytest.raises(Rejected) as caught:
        check_room(known=False, others=2, rules=rules)
    assert caught.value.reason is Reason.TOO_MANY_CLIENTS


def test_what_lies_in_the_control_topic() -> None:
    rules = ParticipationRules(("ward-*", "lab-3"), 20, 100)
    assert orjson.loads(dump_participation(rules)) == {
        "clients": ["ward-*", "lab-3"],
        "at_once": 20,
        "min_examples": 100,
    }
    assert load_participation(orjson.loads(dump_participation(rules))) == rules
    order = ClientOrder(False, {"codec.name": "topk", "codec.fraction": 0.05}, "slow link", 1_790_000_000_000)
    value = dump_order(order)
    assert value is not None
    assert load_order(orjson.loads(value)) == order
    assert load_order({**orjson.loads(value), "of a later release": 1}) == order
    assert dump_order(None) is None


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"forbidden": 1, "settings": {}, "reason": "", "time_ms": 0},
        {"forbidden": True, "settings": {"codec.name": ["topk"]}, "reason": "", "time_ms": 0},
        {"forbidden": True, "settings": {str(number): 1 for number in range(65)}, "reason": "", "time_ms": 0},
        {"forbidden": True, "settings": {}, "reason": "", "time_ms": -1},
    ],
)
def test_an_order_that_is_none(value: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError, Rejected)):
        load_order(value)


@pytest.mark.parametrize("value", [{"clients": "ward"}, {"clients": ["a"], "at_once": 0}, {"at_once": 3}])
def test_rules_that_are_none(value: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError, Rejected)):
        load_participation(value)


def test_what_can_be_ordered() -> None:
    client, codec = ClientSettings(epochs=3), CodecSettings(name="int8")
    changed = ordered(client, codec, {"client.pace_seconds": 60, "codec.name": "topk", "codec.fraction": 0.05})
    assert changed == (
        client.model_copy(update={"pace_seconds": 60.0}),
        codec.model_copy(update={"name": "topk", "fraction": 0.05}),
    )
    assert ordered(client, codec, {}) == (client, codec)
    for name in ORDERED:
        section, _, field = name.partition(".")
        assert field in (ClientSettings if section == "client" else CodecSettings).model_fields


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ({"client.state_dir": "/"}, "no operator sets this"),
        ({"task.entry": "os:system"}, "no operator sets this"),
        ({"codec.name": "evil.module:run"}, "neither built in nor"),
        ({"codec.fraction": 7}, "codec|fraction"),
        ({"client.epochs": 0}, "epochs"),
    ],
)
def test_what_cannot_be_ordered(order: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ordered(ClientSettings(), CodecSettings(), order)


def test_the_policy_leaves_when_unwanted_and_rests_without_room() -> None:
    rules = ClientSettings()
    state, action = policy.next_action(policy.join(rules, 0.0), policy.Heard(newest=0, unwanted="no"), 0.0)
    assert action == policy.Leave("not wanted: no")
    state = policy.observe(policy.join(rules, 0.0), policy.Heard(newest=0, rests_until=20.0), 0.0)
    assert policy.decide(state, 0.0)[1] == policy.Wait(20.0, policy.WaitReason.ROOM)
    assert policy.decide(state, 20.0)[1] == policy.Train(0)
    state = policy.observe(state, policy.Heard(newest=0, ended="target", unwanted="no"), 0.0)
    assert policy.decide(state, 0.0)[1] == policy.Leave("run ended: target")
