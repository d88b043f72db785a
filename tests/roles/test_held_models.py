"""What a site holds of others' models until it measures them: how many, whose, and when it is their turn."""

from llmos_stream.log.admission import head_of
from llmos_stream.roles.client.held_models import AT_ONCE, SITES, HeldModels
from llmos_stream.types import CodecSpec, LocalModelHead
from llmos_stream.wire import MemoryStore, Message

_ROOM = 1 << 20


def _model(site: str, version: int = 0, size: int = 4) -> Message:
    head = LocalModelHead(site, version, 0, bytes(32), CodecSpec(1), size, bytes(32))
    return Message(head, None, MemoryStore([memoryview(bytes(size))]), 0, 0, 0, site.encode())


def _sites(models: list[Message]) -> list[str]:
    return [head_of(LocalModelHead, model).client_id for model in models]


def test_a_sites_turn_comes_once_in_so_many_versions_with_its_newest_model() -> None:
    held = HeldModels(10, _ROOM)
    old = _model("a", 1)
    assert held.take(old)
    assert held.take(_model("a", 2))
    assert list(old.parts) == []  # given back
    assert [model.head.version for model in held.due(4) if isinstance(model.head, LocalModelHead)] == [2]
    held.take(_model("a", 5))
    assert held.due(9) == []
    assert _sites(held.due(10)) == ["a"]
    held.take(_model("a", 11))
    assert held.due(12) == []
    assert _sites(held.due(12, all_of_them=True)) == ["a"]
    assert held.due(99, all_of_them=True) == []


def test_few_at_once_and_first_those_that_contribute_then_those_that_have_waited() -> None:
    held = HeldModels(1, _ROOM)
    for version in range(2):
        for number in range(AT_ONCE + 2):
            held.take(_model(f"site{number}", version))
        held.note(["site5"])
        first = _sites(held.due(10 + 2 * version))
        assert len(first) == AT_ONCE
        assert first[0] == "site5"
        rest = _sites(held.due(11 + 2 * version))
        assert sorted(first + rest) == [f"site{number}" for number in range(AT_ONCE + 2)]


def test_made_up_names_leave_no_room_only_to_others_of_their_kind() -> None:
    held = HeldModels(1, _ROOM)
    for number in range(SITES):
        assert held.take(_model(f"made-up{number}"))
    refused = _model("late")
    assert not held.take(refused)
    assert list(refused.parts) == []
    held.note(["ward"])
    assert held.take(_model("ward"))
    found = _sites(held.due(0, all_of_them=True))
    assert len(found) == SITES
    assert "ward" in found


def test_so_many_bytes_at_most_are_held() -> None:
    held = HeldModels(1, 100)
    assert held.take(_model("stranger", size=60))
    assert not held.take(_model("other", size=60))
    held.note(["ward", "clinic"])
    assert held.take(_model("ward", size=60))  # in its place
    assert not held.take(_model("clinic", size=60))
    assert held.take(_model("ward", size=100))  # in place of its own
    assert not held.take(_model("ward", size=101))
    assert held.due(0, all_of_them=True) == []


def test_a_version_that_there_is_not_is_waited_for_once() -> None:
    held = HeldModels(1, _ROOM)
    held.take(_model("quick", 5))
    held.take(_model("prophet", 1 << 40))
    assert held.drop_impossible(4) == []
    assert held.due(4) == []
    assert _sites(held.drop_impossible(5)) == ["prophet"]
    assert _sites(held.due(5)) == ["quick"]
