"""Follows what the page shows beside the events: `<f>.control` and the heads of the versions."""

from llmos_stream.broker import Broker, Reader, Topics
from llmos_stream.dashboard.federation_view import FederationView
from llmos_stream.log import ControlView, wait_for_topics
from llmos_stream.log.scan import HeadStream
from llmos_stream.log.stream import go_on
from llmos_stream.runtime import Shutdown, run_all
from llmos_stream.runtime.retry import keep_trying, until_stop
from llmos_stream.types import VersionHead

_POLL_SECONDS = 0.25
_LOOK_BACK = 512
"""Records of `<f>.models` that are read for earlier versions: at most half a GiB."""


async def follow(broker: Broker, topics: Topics, view: FederationView, shutdown: Shutdown) -> None:
    """Keep the view up to date until a stop is asked for, through broker trouble."""

    async def control() -> None:
        if not await wait_for_topics(broker, [topics.control], shutdown):
            return
        async with broker.reader([topics.control], start="earliest") as reader:
            control = ControlView(reader)
            await until_stop(control.catch_up(), shutdown)
            view.update_control(control, live=False)
            while not shutdown.requested:
                await control.poll(_POLL_SECONDS)
                view.update_control(control, live=True)

    async def versions() -> None:
        if not await wait_for_topics(broker, [topics.models], shutdown):
            return
        async with broker.reader([topics.models], start="earliest") as reader:
            await until_stop(_look_back(reader), shutdown)
            await _follow_heads(reader, view, shutdown)

    await run_all(
        keep_trying(control, shutdown, "following the control topic again"),
        keep_trying(versions, shutdown, "following the versions again"),
    )


async def _look_back(reader: Reader) -> None:
    """Skip versions that are too many to read."""
    for at, end in (await reader.end_offsets()).items():
        await reader.seek_to_beginning(at)
        if await reader.position(at) < end - _LOOK_BACK:
            reader.seek(at, end - _LOOK_BACK)


async def _follow_heads(reader: Reader, view: FederationView, shutdown: Shutdown) -> None:
    heads = HeadStream(reader, VersionHead, on_gap=go_on("versions"))
    while not shutdown.requested:
        for item in await heads.heads(_POLL_SECONDS):
            view.add_version(item.head, item.partition, item.offset)
