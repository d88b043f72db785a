"""Asynchronous federated learning as an event log.

    from llmos_stream import FederatedLearning, Task, history

See `FederatedLearning` for training from your own loop, `Participant` for models that are not torch's, `Task` for a
model and data of your own in every role, `history` for a run as tables, and `llmos-stream --help` for everything else.
"""

TYPE_CHECKING = False  # as in `typing`, which takes its time: Ctrl-C is not heeded yet
try:
    import fcntl as _fcntl  # noqa: F401 (a state folder is locked by it)
except ImportError:
    raise ImportError(
        "llmos_stream runs on Linux and macOS; on Windows run it in WSL 2 or in a container (docker/)"
    ) from None

if TYPE_CHECKING:
    from llmos_stream.federated import FederatedLearning, Participant
    from llmos_stream.tracking.frames import history
    from llmos_stream.training import Task

__version__ = "0.1.0"
__all__ = ["FederatedLearning", "Participant", "Task", "__version__", "history"]


def __getattr__(name: str) -> object:
    # On first use: importing torch takes seconds, and `llmos-stream --help` needs none of it.
    if name in ("FederatedLearning", "Participant"):
        from llmos_stream import federated

        return getattr(federated, name)
    if name == "Task":
        from llmos_stream.training import Task

        return Task
    if name == "history":
        from llmos_stream.tracking.frames import history

        return history
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
