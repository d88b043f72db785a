"""Models that sites have trained alone and share, in `<f>.locals`: between weights and messages.

Nothing is decided by them: other sites measure them on their own validation data, and tell what came out.
"""

from collections.abc import Iterator
from contextlib import closing

from torch import Tensor

from llmos_stream.codec import Layout, decode, encode
from llmos_stream.errors import Reason, Rejected
from llmos_stream.log.admission import check_payload_size, head_of
from llmos_stream.log.versions import FULL_CODEC
from llmos_stream.storage.spool import spooled
from llmos_stream.types import CodecId, LocalModelHead
from llmos_stream.wire import Admit, Message, Parts, Prelude, Store, message_id, pack_prelude, split

_CODECS = frozenset({CodecId.FLOAT32, CodecId.FLOAT16, CodecId.BFLOAT16})


def encode_local_model(
    client_id: str, version: int, since: int, layout: Layout, weights: Tensor, store: Store
) -> tuple[LocalModelHead, Parts]:
    """The head and the payload, kept in `store`, of a model with these weights (flat). Lossless. Works for a while."""
    payload = spooled(encode(weights, FULL_CODEC), store)
    head = LocalModelHead(client_id, version, since, layout.digest, FULL_CODEC, payload.size, payload.digest)
    return head, payload.parts


def local_model_records(head: LocalModelHead, parts: Parts, chunk_bytes: int, attempt: int) -> Iterator[bytes]:
    """The values of the records of one sending; `attempt` is by chance, and another one each time."""
    identifier = message_id(head.client_id, head.version, attempt)
    return split(pack_prelude(head), parts, head.payload_size, identifier, chunk_bytes)


def admit_local_model(layout: Layout) -> Admit:
    """Let in what another client of the same model may have sent; it raises Rejected for all else."""

    def admit(prelude: Prelude) -> None:
        head = head_of(LocalModelHead, prelude)
        if prelude.key != head.client_id.encode():
            raise Rejected(Reason.WRONG_KEY, "its key is not the client that it names")
        if head.layout_digest != layout.digest:
            raise Rejected(Reason.WRONG_LAYOUT, "it is of another model")
        if head.codec.id not in _CODECS:
            raise Rejected(Reason.UNKNOWN_CODEC, f"no local model is written in {head.codec.label}")
        check_payload_size(head, layout.numel)

    return admit


def decode_local_model(message: Message, layout: Layout) -> Tensor:
    """The weights (flat, float32), after which the message's parts are given back. Works for a while.

    Raises Rejected for what is not what its head says.
    """
    head = head_of(LocalModelHead, message)
    with closing(message.parts):
        if message.payload_digest != head.payload_digest:
            raise Rejected(Reason.WRONG_DIGEST, "the payload does not match its digest")
        return decode(message.parts, head.codec, layout.numel)
