"""The Python API: federated training from the caller's own loop."""

from llmos_stream.federated.learning import FederatedLearning

__all__ = ["FederatedLearning"]
