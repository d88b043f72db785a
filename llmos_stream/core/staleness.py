"""How old an update is, and what that costs it.

Staleness of an update folded while the global version is `v`: `tau = v - base_version`, where
`base_version` is what the update itself names. The discounts s(tau) are those of Xie et al. 2019,
"Asynchronous Federated Optimization", section 5.2; the polynomial with a = 0.5 is the one of Nguyen
et al. 2022, "Federated Learning with Buffered Asynchronous Aggregation": 1 / sqrt(1 + tau).
"""

from collections.abc import Callable, Mapping

from llmos_stream.config import StalenessSettings
from llmos_stream.errors import ConfigError, Reason, Rejected

Discount = Callable[[int], float]
"""s(tau): from 0 to 1, 1.0 for `tau` 0."""


def constant(options: object, settings: StalenessSettings) -> Discount:
    """`1`."""
    return lambda tau: 1.0


def polynomial(options: object, settings: StalenessSettings) -> Discount:
    """`(1 + tau)^-a`."""
    return lambda tau: float((1.0 + tau) ** -settings.a)


def hinge(options: object, settings: StalenessSettings) -> Discount:
    """`1` if `tau <= b`, else `1 / (a (tau - b) + 1)`."""
    a, b = settings.a, settings.b
    return lambda tau: 1.0 if tau <= b else 1.0 / (a * (tau - b) + 1.0)


BUILT_IN: Mapping[str, Callable[..., Discount]] = {"constant": constant, "polynomial": polynomial, "hinge": hinge}


def discounted(discount: Discount, tau: int) -> float:
    """s(tau). Raises ValueError for a negative `tau`, ConfigError for a function that leaves 0 to 1."""
    if tau < 0:
        raise ValueError(f"staleness cannot be negative: {tau}")
    found = discount(tau)
    if not 0 <= found <= 1:
        raise ConfigError(f"staleness.kind: s({tau}) is {found}, which is not from 0 to 1")
    return found


def staleness_of(base_version: int, version: int, settings: StalenessSettings) -> int:
    """Versions between `base_version` and the global `version`: tau, at most `settings.maximum`.

    Raises Rejected: UNKNOWN_BASE_VERSION for a base that does not exist (yet), TOO_STALE above the maximum.
    """
    if not 0 <= base_version <= version:
        raise Rejected(Reason.UNKNOWN_BASE_VERSION, f"base version {base_version} at global version {version}")
    tau = version - base_version
    if tau > settings.maximum:
        raise Rejected(Reason.TOO_STALE, f"staleness {tau} is above staleness.maximum ({settings.maximum})")
    return tau
