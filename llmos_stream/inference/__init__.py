"""Inference: the federation's versions, asked over HTTP while new ones come."""

from llmos_stream.inference.service import run_inference

__all__ = ["run_inference"]
