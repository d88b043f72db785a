"""Tensors to bytes and back: layout, codecs, payloads and error feedback. Pure: no clock, no global randomness."""

from llmos_stream.codec.base import Codec
from llmos_stream.codec.chain import DeltaEncoding, Residual, apply_delta, encode_delta, fits_delta, settle
from llmos_stream.codec.compact import Compact, compact_bytes
from llmos_stream.codec.decoding import Decoding, compacting, reading, slices
from llmos_stream.codec.feedback import ErrorFeedback
from llmos_stream.codec.layout import Layout, check_flat, is_finite
from llmos_stream.codec.payload import SLICE, decode, encode, max_payload_size, weights_digest
from llmos_stream.codec.registry import codec_for, spec_of
from llmos_stream.codec.scratch import Scratch

__all__ = [
    "SLICE",
    "Codec",
    "Compact",
    "Decoding",
    "DeltaEncoding",
    "ErrorFeedback",
    "Layout",
    "Residual",
    "Scratch",
    "apply_delta",
    "check_flat",
    "codec_for",
    "compact_bytes",
    "compacting",
    "decode",
    "encode",
    "encode_delta",
    "fits_delta",
    "is_finite",
    "max_payload_size",
    "reading",
    "settle",
    "slices",
    "spec_of",
    "weights_digest",
]
