"""Transactional ids of an in-process broker: who holds one, and what each has open."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmos_stream.broker.memory.cluster import Cluster
from llmos_stream.broker.ports import Headers, Sent, TopicPartition
from llmos_stream.broker.rules import fenced
from llmos_stream.errors import Fenced


@dataclass(eq=False, slots=True)
class Session:
    """One opened transactional producer. It is fenced once its id is held by another, or by none."""

    transactional_id: str
    transaction: int | None = None
    deadline: float = 0.0
    touched: set[TopicPartition] = field(default_factory=set)
    group: str = ""
    offsets: dict[TopicPartition, int] = field(default_factory=dict)


class Sessions:
    """Begin, write, commit, abort. Everything happens under the cluster's lock."""

    def __init__(self, cluster: Cluster, transaction_seconds: float) -> None:
        self._cluster = cluster
        self._lock = cluster.lock
        self._seconds = transaction_seconds
        self._holders: dict[str, Session] = {}
        self._transactions = 0

    def open(self, transactional_id: str) -> Session:
        """Give the id to a new producer: an older one is fenced, what it left open is aborted."""
        with self._lock:
            if (older := self._holders.get(transactional_id)) is not None:
                self._end(older, commit=False)
            session = self._holders[transactional_id] = Session(transactional_id)
            return session

    def close(self, session: Session) -> None:
        """Give the id back, if this session still holds it."""
        with self._lock:
            if self._holders.get(session.transactional_id) is session:
                self._end(session, commit=False)
                del self._holders[session.transactional_id]

    def begin(self, session: Session) -> None:
        with self._lock:
            self._refuse_fenced(session)
            self._transactions += 1
            session.transaction = self._transactions
            session.deadline = self._cluster.clock() + self._seconds

    def append(
        self, session: Session, at: TopicPartition, value: bytes | None, key: bytes | None, headers: Headers
    ) -> Sent:
        with self._lock:
            self._refuse_fenced(session)
            sent = self._cluster.append(at, value, key, headers, session.transaction)
            session.touched.add(at)
            return sent

    def add_offsets(self, session: Session, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        with self._lock:
            self._refuse_fenced(session)
            session.group = group
            session.offsets.update(offsets)

    def end(self, session: Session, *, commit: bool) -> None:
        with self._lock:
            self._refuse_fenced(session)
            self._end(session, commit=commit)

    def abort_overdue(self) -> float | None:
        """Give up transactions past their deadline and fence their producers; seconds to the next deadline."""
        with self._lock:
            now = self._cluster.clock()
            open_ones = [session for session in self._holders.values() if session.transaction is not None]
            for session in open_ones:
                if session.deadline <= now:
                    self.close(session)
            return min((session.deadline - now for session in open_ones if session.deadline > now), default=None)

    def _end(self, session: Session, *, commit: bool) -> None:
        if session.transaction is None:
            return
        self._cluster.finish(session.transaction, session.touched, commit=commit)
        if commit:
            self._cluster.commit(session.group, session.offsets)
        session.transaction = None
        session.touched = set()
        session.offsets = {}

    def _refuse_fenced(self, session: Session) -> None:
        self.abort_overdue()
        if self._holders.get(session.transactional_id) is not session:
            raise Fenced(fenced(session.transactional_id))
