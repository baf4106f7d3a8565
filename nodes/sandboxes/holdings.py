"""Who owns which sandbox of a host: the rules, without sockets, clock or processes.

    warm --take--> held --pin--> pinned --settle--> pinned, known to the broker
     new --hold--> held
    everything --> given up: by its attempt, with its host's connection, with its rollout

Job: keep the book of a host's sandboxes, and say which ones nobody owns any more.
Does not know: how a sandbox is started or stopped.
Invariants: a sandbox is in the book from its start until it was said to be given up, once. One that
is held belongs to a connection and goes with it. One that is pinned belongs to its rollout: it goes
when the broker says that the rollout is not pinned here, but not before its result was settled or
its connection was lost for a while, because until then the broker may not know yet.
"""

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Literal

from .contract import Limits, Owner, Spec
from .records import Record

NOTED = 10_000  # ends whose reasons are remembered; the oldest are forgotten
KINDS = 8  # of sandboxes kept warm beside the images of the topology; the oldest are forgotten

Key = tuple[str, int, bool]
State = Literal["warm", "held", "pinned"]


def key_of(spec: Spec) -> Key:
    """Return what has to be right when a sandbox starts; everything else is set on entering."""
    return (spec.image, spec.limits.disk_bytes, spec.limits.network)


@dataclass(slots=True)
class Holding:
    """One sandbox; `link` is the connection that it goes with, `known_at` when a pin was settled.

    Times are seconds of one clock.
    """

    record: Record
    key: Key
    state: State
    began: float
    link: int = 0
    known_at: float | None = None


class Holdings:
    """The book."""

    def __init__(self, pool: int, keys: list[Key]) -> None:
        self._pool = pool
        self._wanted: OrderedDict[Key, None] = OrderedDict.fromkeys(keys)
        self._fixed = set(keys)
        self._book: dict[str, Holding] = {}
        self._ends: OrderedDict[str, str] = OrderedDict()  # why, by rollout

    def __len__(self) -> int:
        return len(self._book)

    def count(self, state: State) -> int:
        """Return how many are in a state."""
        return sum(each.state == state for each in self._book.values())

    def add_warm(self, record: Record, key: Key, now: float) -> None:
        """Enter one that was started for whoever comes."""
        self._book[record.name] = Holding(record, key, "warm", now)

    def missing(self, under_way: list[Key]) -> list[Key]:
        """Return what to start so that each kind has its pool; `under_way` is being started."""
        short: list[Key] = []
        for key in self._wanted:
            warm = sum(each.state == "warm" and each.key == key for each in self._book.values())
            short += [key] * max(0, self._pool - warm - under_way.count(key))
        return short

    def take(self, spec: Spec, owner: Owner, link: int, now: float) -> Record | None:
        """Give a warm one to an attempt, the oldest; None if there is none."""
        key = key_of(spec)
        if self._pool:
            self._want(key)
        for holding in self._book.values():
            if holding.state == "warm" and holding.key == key:
                return self._hold(holding, spec, owner, link, now)
        return None

    def hold(self, record: Record, spec: Spec, owner: Owner, link: int, now: float) -> Record:
        """Enter one that was started for an attempt."""
        holding = Holding(record, key_of(spec), "warm", now)
        self._book[record.name] = holding
        return self._hold(holding, spec, owner, link, now)

    def _hold(self, holding: Holding, spec: Spec, owner: Owner, link: int, now: float) -> Record:
        environment = {**holding.record.environment, **spec.environment}
        holding.record = replace(
            holding.record,
            limits=spec.limits,
            environment=environment,
            workdir=spec.workdir,
            owner=owner,
        )
        holding.state, holding.link, holding.began = "held", link, now
        return holding.record

    def _want(self, key: Key) -> None:
        self._wanted[key] = None
        self._wanted.move_to_end(key)
        others = [each for each in self._wanted if each not in self._fixed]
        for each in others[:-KINDS]:
            del self._wanted[each]

    def pin(self, name: str, link: int) -> bool:
        """Leave one to its rollout; False if that connection does not hold it."""
        holding = self._book.get(name)
        if holding is None or holding.link != link or holding.state == "warm":
            return False
        holding.state = "pinned"
        self._ends.pop(_rollout(holding), None)
        return True

    def settle(self, name: str, link: int, now: float) -> list[str]:
        """Note that the broker knows of a pin, or has refused it; return what it replaces.

        That is what earlier attempts of the rollout have pinned: nobody finds it any more.
        """
        holding = self._book.get(name)
        if holding is None or holding.state != "pinned" or holding.link != link:
            return []
        holding.known_at = now
        mine = holding.record
        return [
            each.record.name
            for each in self._pinned()
            if _rollout(each) == _rollout(holding) and _attempt(each.record) < _attempt(mine)
        ]

    def find(self, rollout_id: str) -> Record | None:
        """Return the pinned sandbox of a rollout, the newest."""
        found = [each.record for each in self._pinned() if _rollout(each) == rollout_id]
        return max(found, key=_attempt, default=None)

    def link_lost(self, link: int, known_at: float) -> list[str]:
        """Return what goes with a connection; its pins stay until the broker disowns them."""
        gone = []
        for name, holding in self._book.items():
            if holding.link != link:
                continue
            if holding.state == "held":
                gone.append(name)
            elif holding.known_at is None:
                holding.known_at = known_at
        return gone

    def to_ask(self, now: float) -> list[str]:
        """Return the rollouts whose pins the broker has to know by now."""
        return sorted({_rollout(each) for each in self._pinned() if _is_known(each, now)})

    def disowned(self, rollout_ids: list[str], now: float) -> list[str]:
        """Return the sandboxes of rollouts that are not pinned here."""
        over = set(rollout_ids)
        return [
            each.record.name
            for each in self._pinned()
            if _rollout(each) in over and _is_known(each, now)
        ]

    def expired(self, now: float) -> list[str]:
        """Return those that have lived as long as they may."""
        return [
            name
            for name, each in self._book.items()
            if each.state != "warm" and now - each.began > each.record.limits.wall_s
        ]

    def lent(self) -> list[Record]:
        """Return those in which something may run."""
        return [each.record for each in self._book.values() if each.state != "warm"]

    def get(self, name: str) -> Record | None:
        """Return one by its name."""
        holding = self._book.get(name)
        return holding.record if holding else None

    def holds(self, name: str, link: int) -> bool:
        """Whether a connection may end it: what it holds or has pinned."""
        holding = self._book.get(name)
        return holding is not None and holding.link == link

    def note_end(self, name: str, why: str) -> None:
        """Remember why a pinned one is ended, for who asks for it later."""
        holding = self._book.get(name)
        if holding is not None and holding.state == "pinned":
            self._ends[_rollout(holding)] = why
            if len(self._ends) > NOTED:
                self._ends.popitem(last=False)

    def why_ended(self, rollout_id: str) -> str:
        """Return why a rollout's pinned one was ended, "" if not for anything that it did."""
        return self._ends.get(rollout_id, "")

    def forget(self, name: str) -> None:
        """Strike one out."""
        self._book.pop(name, None)

    def names(self) -> list[str]:
        """Return all of them."""
        return list(self._book)

    def _pinned(self) -> list[Holding]:
        return [each for each in self._book.values() if each.state == "pinned"]


def _rollout(holding: Holding) -> str:
    return holding.record.owner.rollout_id if holding.record.owner else ""


def _attempt(record: Record) -> int:
    return record.owner.attempt if record.owner else 0


def _is_known(holding: Holding, now: float) -> bool:
    return holding.known_at is not None and holding.known_at <= now


def clipped(limits: Limits, most: Limits) -> Limits:
    """Return limits that are nowhere above others; whether there is a network stays as asked."""
    return replace(
        limits,
        memory_bytes=min(limits.memory_bytes, most.memory_bytes),
        total_bytes=min(limits.total_bytes, most.total_bytes),
        cpu_s=min(limits.cpu_s, most.cpu_s),
        processes=min(limits.processes, most.processes),
        wall_s=min(limits.wall_s, most.wall_s),
        disk_bytes=min(limits.disk_bytes, most.disk_bytes),
    )
