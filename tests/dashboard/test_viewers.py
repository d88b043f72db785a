"""Who is let in, and whose stream ends for it."""

from contextlib import ExitStack

import pytest

from llmos_stream.dashboard.viewers import Viewers


@pytest.mark.parametrize(
    ("held", "newest", "ended"),
    [
        (["a", "b", "b", "c"], "d", 1),  # the oldest of the one who holds most
        (["a", "b", "b", "c"], "b", 1),
        (["a", "b", "c", "d"], "e", 0),
        (["10.0.0.1", "::ffff:10.0.0.1", "10.0.0.2", "10.0.0.3"], "x", 0),
        (["10.0.0.1", "2001:db8::1", "2001:db8::2:1", "10.0.0.3"], "x", 1),
        (["10.0.0.1", "2001:db8::1", "2001:db8:0:1::1", "fe80::1%eth0"], "x", 0),
        ([None, None, "a", "b"], "a", 0),
    ],
)
def test_the_address_that_holds_most_gives_way(held: list[str | None], newest: str, ended: int) -> None:
    viewers = Viewers(4)
    with ExitStack() as stack:
        streams = [stack.enter_context(viewers.watching(address)) for address in held]
        assert not any(stream.is_set() for stream in streams)
        with viewers.watching(newest) as new:
            assert len(viewers) == 4
            assert [index for index, stream in enumerate(streams) if stream.is_set()] == [ended]
            assert not new.is_set()
    assert len(viewers) == 0
