"""Tensors to bytes and back: layout, codecs, payloads and error feedback. Pure: no clock, no global randomness."""

from llmos_stream.codec.decoding import Decoding, prepare_quantized, prepare_visit, slices
from llmos_stream.codec.feedback import ErrorFeedback
from llmos_stream.codec.layout import Layout, is_finite
from llmos_stream.codec.payload import SLICE, decode, encode, max_payload_size, weights_digest, with_buffers
from llmos_stream.codec.quantized_form import QuantizedForm, quantized_bytes
from llmos_stream.codec.table import spec_of
from llmos_stream.codec.version_delta import (
    DeltaEncoding,
    Residual,
    add_residual,
    apply_delta,
    encode_delta,
    fits_delta,
)
from llmos_stream.codec.workspace import Workspace

__all__ = [
    "SLICE",
    "Decoding",
    "DeltaEncoding",
    "ErrorFeedback",
    "Layout",
    "QuantizedForm",
    "Residual",
    "Workspace",
    "add_residual",
    "apply_delta",
    "decode",
    "encode",
    "encode_delta",
    "fits_delta",
    "is_finite",
    "max_payload_size",
    "prepare_quantized",
    "prepare_visit",
    "quantized_bytes",
    "slices",
    "spec_of",
    "weights_digest",
    "with_buffers",
]
