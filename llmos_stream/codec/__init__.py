"""Tensors to bytes and back: layout, codecs, payloads and error feedback. Pure: no clock, no global randomness."""

from llmos_stream.codec.decoding import Decoding, prepare_quantized, prepare_visit, slices
from llmos_stream.codec.feedback import ErrorFeedback
from llmos_stream.codec.layout import Layout, check_flat, is_finite
from llmos_stream.codec.payload import SLICE, decode, encode, max_payload_size, weights_digest, with_buffers
from llmos_stream.codec.quantized_form import QuantizedForm, quantized_bytes
from llmos_stream.codec.table import delta_codec, spec_of
from llmos_stream.codec.update_encoding import UpdateEncoding, has_residual
from llmos_stream.codec.version_delta import (
    DeltaEncoding,
    Residual,
    add_residual,
    apply_delta,
    begin_delta,
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
    "UpdateEncoding",
    "Workspace",
    "add_residual",
    "apply_delta",
    "begin_delta",
    "check_flat",
    "decode",
    "delta_codec",
    "encode",
    "encode_delta",
    "fits_delta",
    "has_residual",
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
