"""Tensors to bytes and back: layout, codecs, payloads and error feedback. Pure: no clock, no global randomness."""

from llmos_stream.codec.base import Codec
from llmos_stream.codec.feedback import ErrorFeedback
from llmos_stream.codec.layout import Layout, check_flat
from llmos_stream.codec.payload import SLICE, decode, encode, max_payload_size, payload_digest, weights_digest
from llmos_stream.codec.registry import codec_for, spec_of

__all__ = [
    "SLICE",
    "Codec",
    "ErrorFeedback",
    "Layout",
    "check_flat",
    "codec_for",
    "decode",
    "encode",
    "max_payload_size",
    "payload_digest",
    "spec_of",
    "weights_digest",
]
