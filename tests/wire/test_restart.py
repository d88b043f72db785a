"""What `low_water` promises: a reader that starts again from there misses no message."""

from hypothesis import given
from hypothesis import strategies as st

from llmos_stream.types import UpdateHead
from llmos_stream.wire import Message, Outcome, Refusal
from tests.wire.heads import PROPERTY
from tests.wire.records import payload_of, records, topic


def identities(outcomes: list[Outcome]) -> set[str]:
    return {item.head.client_id for item in outcomes if isinstance(item, Message) and isinstance(item.head, UpdateHead)}


@PROPERTY
@given(st.data())
def test_no_message_is_lost_over_a_restart(data: st.DataObject) -> None:
    queues = {sender: records(payload_of(40 * sender), 80, f"c-{sender}") for sender in range(4)}
    order = data.draw(st.permutations([sender for sender, values in queues.items() for _ in values]))
    log = [queues[sender].pop(0) for sender in order]
    crash = data.draw(st.integers(0, len(log)))

    before = topic()
    folded = before.push(log[:crash])
    low = before.assembler.low_water(0)
    committed = crash if low is None else low
    after = topic()
    again = after.push(log[committed:])

    assert identities(folded) | identities(again) == {f"c-{sender}" for sender in range(4)}
    # What was folded and committed past its beginning leaves only its tail, which names no head.
    refused = [item for item in again if isinstance(item, Refusal)]
    assert all(item.head is None and item.head_bytes == b"" for item in refused)
    assert len(refused) <= len(identities(folded))
