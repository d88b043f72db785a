"""A made-up federation that behaves like a real one: skewed clients, slow clients, staleness, refusals."""

import math
import random

from llmos_stream.reporting.history.fold import History
from llmos_stream.types import Event, EventKind

START_MS = 1_760_000_000_000
RAW_BYTES = 4 * 250_000


class Federation:
    """Events of a run with `clients` clients until `versions` versions of `buffer` updates are out."""

    def __init__(self, clients: int = 8, versions: int = 41, buffer: int = 4, seed: int = 0) -> None:
        self._random = random.Random(seed)  # noqa: S311
        self._versions, self._buffer = versions, buffer
        self.events: list[Event] = []
        self._examples = [int(40 + 900 * self._random.random() ** 2) for _ in range(clients)]
        self._seconds = [0.8 + 0.9 * self._random.random() for _ in range(clients)]
        self._seconds[-1] *= 4
        self._run(clients)

    def _add(self, at: float, kind: EventKind, role: str, /, **data: object) -> None:
        self.events.append(Event(kind, role, START_MS + int(at * 1000), data))

    def _run(self, clients: int) -> None:
        version, folded, offset = 0, 0, 0
        sequences, bases = [0] * clients, [0] * clients
        self._add(
            0,
            EventKind.VERSION_PUBLISHED,
            "aggregator",
            version=0,
            parent=None,
            contributions=0,
            payload_bytes=900_000,
            raw_bytes=RAW_BYTES,
            fold_seconds=0.0,
            mean_staleness=0.0,
            weights_digest="00" * 32,
        )
        due = []
        for index in range(clients):
            join = 0.2 + 0.1 * index + (12 if index == 2 else 0)
            self._add(
                join,
                EventKind.CLIENT_JOINED,
                f"client-{index}",
                client_id=f"client-{index}",
                num_examples=self._examples[index],
            )
            due.append((join + self._seconds[index], index))
        pending: list[int] = []
        now = 0.0
        while version < self._versions:
            due.sort()
            now, index = due.pop(0)
            client, examples = f"client-{index}", self._examples[index]
            sequences[index] += 1
            offset += 1
            took = self._seconds[index] * (0.9 + 0.2 * self._random.random())
            identity = {"client_id": client, "sequence": sequences[index]}
            place = {"partition": 0, "offset": offset}
            self._add(
                now,
                EventKind.UPDATE_SENT,
                client,
                **identity,
                base_version=bases[index],
                num_examples=examples,
                raw_bytes=RAW_BYTES,
                sent_bytes=int(RAW_BYTES * (0.24 + 0.03 * self._random.random())),
                train_seconds=took,
                encode_seconds=0.02,
                metrics={"loss": 1.1, "accuracy": 0.7},
            )
            staleness = version - bases[index]
            if self._random.random() < 0.02:
                self._add(now + 0.05, EventKind.UPDATE_DUPLICATE, "aggregator", **identity, **place)
            elif self._random.random() < 0.03:
                self._add(
                    now + 0.05,
                    EventKind.UPDATE_REJECTED,
                    "aggregator",
                    **identity,
                    **place,
                    reason="not_finite",
                    detail="3 of 250000 elements are not finite",
                )
            elif staleness > max(9, clients):
                self._add(
                    now + 0.05,
                    EventKind.UPDATE_REJECTED,
                    "aggregator",
                    **identity,
                    **place,
                    reason="too_stale",
                    detail=f"staleness {staleness} exceeds {max(9, clients)}",
                )
            else:
                folded += 1
                pending.append(staleness)
                self._add(
                    now + 0.05,
                    EventKind.UPDATE_FOLDED,
                    "aggregator",
                    **identity,
                    **place,
                    staleness=staleness,
                    weight=examples / math.sqrt(1 + staleness),
                    clip=1.0 if staleness < 4 else 0.8,
                    num_examples=examples,
                    version=version + 1,
                    payload_bytes=RAW_BYTES // 4,
                    raw_bytes=RAW_BYTES,
                )
            if len(pending) == self._buffer:
                version += 1
                self._add(
                    now + 0.1,
                    EventKind.VERSION_PUBLISHED,
                    "aggregator",
                    version=version,
                    parent=version - 1,
                    contributions=self._buffer,
                    payload_bytes=260_000,
                    raw_bytes=RAW_BYTES,
                    fold_seconds=0.01,
                    mean_staleness=sum(pending) / self._buffer,
                    weights_digest="ab" * 32,
                )
                pending = []
                accuracy = 0.98 - 0.88 * math.exp(-version / 7) + self._random.gauss(0, 0.006)
                self._add(
                    now + 0.2,
                    EventKind.EVALUATION,
                    "evaluator",
                    version=version,
                    num_examples=360,
                    seconds=0.02,
                    metrics={"accuracy": min(1.0, accuracy), "loss": 0.08 + 2.2 * math.exp(-version / 8)},
                )
            if index == 4 and sequences[4] == 9:
                self._add(now + 0.3, EventKind.CLIENT_LEFT, client, client_id=client, reason="max_updates", updates=9)
            else:
                bases[index] = version
                due.append((now + took, index))
        collapse = {"loss": None, "limit": 9.0, "best_version": 1, "best_loss": 1.8, "action": "none"}
        self._add(now + 0.35, EventKind.MODEL_COLLAPSED, "aggregator", version=2, **collapse)
        self._add(
            now + 0.4,
            EventKind.RUN_FINISHED,
            "aggregator",
            reason="target",
            detail="accuracy 0.97 reached 0.97",
            version=version,
        )
        for index in range(clients):
            if index != 4:
                self._add(
                    now + 1 + 0.05 * index,
                    EventKind.CLIENT_LEFT,
                    f"client-{index}",
                    client_id=f"client-{index}",
                    reason="finished",
                    updates=sequences[index],
                )

    def history(self) -> History:
        history = History()
        for event in self.events:
            history.add(event)
        return history
