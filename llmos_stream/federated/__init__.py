"""The Python API: federated training from the caller's own loop."""

from llmos_stream.federated.learning import FederatedLearning
from llmos_stream.federated.participant import Participant
from llmos_stream.federated.update import Update

__all__ = ["FederatedLearning", "Participant", "Update"]
