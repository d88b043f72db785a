"""Local training: the task, its data and model, and one epoch on one machine."""

from llmos_stream.training.loading import load_task
from llmos_stream.training.local import LocalTrainer, use_threads
from llmos_stream.training.losses import Loss, default_loss
from llmos_stream.training.sharing import shared_layout, shared_tensors
from llmos_stream.training.states import load_, state_with
from llmos_stream.training.task import Task
from llmos_stream.training.task_errors import task_errors

__all__ = [
    "LocalTrainer",
    "Loss",
    "Task",
    "default_loss",
    "load_",
    "load_task",
    "shared_layout",
    "shared_tensors",
    "state_with",
    "task_errors",
    "use_threads",
]
