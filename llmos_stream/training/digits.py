"""The task `digits`: 1797 handwritten digits of 8x8 pixels, split with label skew (needs scikit-learn).

The data set comes with scikit-learn, so nothing is downloaded. The model has 12 thousand parameters; with the option
`model=mlp` it has a hidden layer of 64 in place of a convolution, and 5 thousand.
"""

import torch
from torch import nn

from llmos_stream.config import ClientSettings, TaskSettings
from llmos_stream.errors import TaskError, install
from llmos_stream.training.models import mlp, small_convnet
from llmos_stream.training.partition import stratified_holdout
from llmos_stream.training.seeds import derive_seed
from llmos_stream.training.tensor_task import TensorTask

_TEST_FRACTION = 0.2
_GREY_LEVELS = 16.0
# Of all pixels after scaling. Constants, since no client may look at another's data to compute them.
_PIXEL_MEAN, _PIXEL_STD = 0.3053, 0.3761


class DigitsTask(TensorTask):
    """Images (N, 1, 8, 8), standardised; a fifth of each class is held out for testing.

    Raises:
        TaskError: scikit-learn is not installed, or there are more shards than training examples.
    """

    def __init__(self, task: TaskSettings, client: ClientSettings) -> None:
        try:
            from sklearn.datasets import load_digits  # noqa: PLC0415  # only this task needs the extra
        except ImportError as error:
            raise TaskError(f"needs scikit-learn ({error}); {install('demo')}") from error
        pixels, labels = load_digits(return_X_y=True)
        scaled = torch.from_numpy(pixels).float() / _GREY_LEVELS
        images = ((scaled - _PIXEL_MEAN) / _PIXEL_STD).reshape(-1, 1, 8, 8)
        targets = torch.from_numpy(labels).long()
        kept, held_out = map(
            torch.from_numpy, stratified_holdout(labels, _TEST_FRACTION, derive_seed(task.seed, "test"))
        )
        super().__init__("digits", (images[kept], targets[kept]), (images[held_out], targets[held_out]), task, client)

        if self.options.keys() - {"model"} or self.options.get("model", "convnet") not in ("convnet", "mlp"):
            raise TaskError("task.options: model=convnet or model=mlp")

    def model(self) -> nn.Module:
        seed = derive_seed(self.settings.seed, "model")
        if self.options.get("model") == "mlp":
            return nn.Sequential(nn.Flatten(), *mlp(64, 64, 10, seed=seed))
        return small_convnet(num_classes=10, seed=seed)
