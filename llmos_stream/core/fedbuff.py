"""FedBuff (Nguyen et al. 2022): a version for each buffer of updates.

    Delta = sum_i n_i s(tau_i) c_i Delta_i / sum_i n_i

which is FedAvg (McMahan et al. 2017) when every tau is 0. A server optimiser then applies Delta. It is divided by the
examples and not by the weights, so a stale buffer gives a smaller step, not a full one in a stale direction.
"""

from llmos_stream.core.strategy import Strategy


class FedBuff(Strategy):
    """What `Strategy` is where nothing is overridden."""
