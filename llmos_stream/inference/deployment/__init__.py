"""Hands each promoted adapter to an inference server of another make, for base models that need its GPUs."""

from llmos_stream.inference.deployment.deployer import run_deployer

__all__ = ["run_deployer"]
