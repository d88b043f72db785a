"""Independent seeds for the separate random choices of a task, all from its one `task.seed`."""

import hashlib


def derive_seed(seed: int, purpose: str, *numbers: int) -> int:
    """A seed in [0, 2^63) for one purpose, such as `derive_seed(seed, "batches", shard, epoch)`.

    Different arguments give unrelated seeds: the first 63 bits of SHA-256 over them, the same in every process.
    """
    text = ":".join([purpose, str(seed), *map(str, numbers)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
