"""Local training: the task, its data and model, and one epoch on one machine."""

from llmos_stream.training.batches import Batch
from llmos_stream.training.local import LocalTrainer, evaluate, use_threads
from llmos_stream.training.losses import Loss, default_loss
from llmos_stream.training.partition import dirichlet_split, stratified_holdout
from llmos_stream.training.seeds import derive_seed
from llmos_stream.training.sharing import shared_layout, shared_tensors
from llmos_stream.training.states import load_, state_with
from llmos_stream.training.task import Task, load_task
from llmos_stream.training.task_errors import task_errors
from llmos_stream.training.tensor_task import Batches, TensorTask

__all__ = [
    "Batch",
    "Batches",
    "LocalTrainer",
    "Loss",
    "Task",
    "TensorTask",
    "default_loss",
    "derive_seed",
    "dirichlet_split",
    "evaluate",
    "load_",
    "load_task",
    "shared_layout",
    "shared_tensors",
    "state_with",
    "stratified_holdout",
    "task_errors",
    "use_threads",
]
