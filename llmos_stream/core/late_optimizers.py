"""Server optimisers made for updates that come late.

FADAS (Wang et al. 2024, "FADAS: Towards Federated Adaptive Asynchronous Optimization", algorithm 1 with the rate that
adapts to delay) is Adam with the largest second moment so far (AMSGrad), and a smaller step where an update of the
version is stale:

    m = beta1 m + (1 - beta1) Delta             v = beta2 v + (1 - beta2) Delta^2            u = max(u, v)
    x = x + r m / (sqrt(u) + epsilon)           r = lr, but min(lr, 1 / tau) where tau > tau_c

tau is the staleness of the stalest update that takes part, tau_c the option `delay`. v and u begin at epsilon^2, as
the second moments of the other optimisers do. The paper's Delta is the plain mean; that of FedBuff is it where
`staleness.kind` is constant and the clients have equally many examples.

Delayed Nesterov (Liu et al. 2024, "Asynchronous Local-SGD Training for Language Modeling", algorithm 3): momentum
applied to stale updates carries on what is old, so it is renewed once in N versions, by all that came since:

    D = D + Delta
    version a multiple of N:    m = beta m + D / N;  x = x + lr ((1 - c N + c) beta m + Delta / N);  D = 0
    any other:                  x = x + lr (c beta m + Delta / N)

beta is `server_optimizer.momentum`, N the option `period`, c `activation`, from 0 to 1 / N. In the paper each update is
a version (`aggregation.buffer_size` 1) and N the number of clients. With N 1 it is SGD with Nesterov momentum. Where in
the period a version stands follows from its number, so that a restart and a replay need no more than the moments.

Memory beyond the weights: 3 vectors (FADAS), 2 (delayed Nesterov), each as large as the model, kept with every version.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from llmos_stream.config import ServerOptimizerSettings
from llmos_stream.config.rules import DelayedNesterovOptions, FadasOptions
from llmos_stream.core.flat import divisor
from llmos_stream.core.optimizer import Adam, ServerOptimizer


class Fadas(Adam):
    """Adam with the largest second moment so far, and a smaller step where an update is stale."""

    Options: ClassVar[type[Any]] = FadasOptions

    def __init__(self, options: Any, settings: ServerOptimizerSettings, numel: int, device: torch.device) -> None:
        super().__init__(options, settings, numel, device)
        self.tensors["largest_second_moment"] = self.zeros().add_(self.epsilon**2)

    def move(self, x: Tensor, d: Tensor, moments: list[Tensor], a: Tensor, b: Tensor) -> None:
        m, v, largest = moments
        rate = min(self.lr, 1.0 / self.stalest) if self.stalest > self.options.delay else self.lr
        m.mul_(self.beta1).add_(torch.mul(d, 1.0 - self.beta1, out=a))
        self._second_moment(v, torch.mul(d, d, out=a), b)
        torch.maximum(largest, v, out=largest)
        torch.sqrt(largest, out=a).add_(self.epsilon)
        torch.div(m, a, out=d).mul_(rate).add_(x)


class DelayedNesterov(ServerOptimizer):
    """SGD whose Nesterov momentum is renewed once in `period` versions."""

    Options: ClassVar[type[Any]] = DelayedNesterovOptions
    counts_versions: ClassVar[bool] = True

    def __init__(self, options: Any, settings: ServerOptimizerSettings, numel: int, device: torch.device) -> None:
        super().__init__(options, settings, numel, device)
        self.momentum = settings.momentum
        self.tensors = {"momentum": self.zeros(), "sum": self.zeros()}

    def move(self, x: Tensor, d: Tensor, moments: list[Tensor], a: Tensor, b: Tensor) -> None:
        (m, total), period, part = moments, self.options.period, self.options.activation
        by = divisor(period, d)
        total.add_(d)
        if self.version % period == 0:
            m.mul_(self.momentum).add_(torch.div(total, by, out=a))
            total.zero_()
            part = 1.0 - part * period + part
        d.div_(by).add_(torch.mul(m, part * self.momentum, out=a))
        d.mul_(self.lr).add_(x)
