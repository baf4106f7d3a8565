"""A deterministic simulation: clients, a broker with a journal, and workers, over a bad network.

One seed is one schedule. Messages of workers are lost, repeated, delayed and reordered; trainers'
connections break; the broker, workers, hosts and clients crash and stand still; the journal commits
late and in part, and what was not durable is lost. After `CALM_S` the faults end, and everything
that was accepted must end and be acknowledged. Nothing here sleeps or reads a clock.
"""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from random import Random
from typing import Any

from engine.ledger import (
    Deliver,
    Dispatch,
    DropTrainer,
    Event,
    Forget,
    FreeBody,
    FromTrainer,
    FromWorker,
    Instruction,
    Keep,
    KeepValue,
    Ledger,
    PipeClosed,
    Reply,
    Rewound,
    Rules,
    Settle,
    StageRule,
    StopAttempts,
    Tell,
    Tick,
    TrainerGone,
)
from engine.ledger.grounds import Grounds
from engine.messages import Boot, Hello, Ping, Pong, Problem, ResultAck, Stop, Work

from ..ledger_kit import MemoryJournal, buffers
from ..promises import Promises

CALM_S = 15.0
END_S = 400.0
TICK_S = 0.25
VALIDATE_EVERY = 3  # events; what is wrong in the books stays wrong, and a seed can be run again
RULES = Rules(
    stages=(StageRule("init", 4, 2), StageRule("run", 4, 3), StageRule("eval", 4, 3)),
    heartbeat_s=0.5,
    lease_s=1.5,
    retry_delay_s=0.25,
    retention_s=4.0,
    rollouts=9,
    bytes=3_000,
    message_bytes=1_000_000,
    group=8,
    client_window=4,
    client_bytes=64,
)


@dataclass(frozen=True, slots=True)
class Weather:
    """How bad a schedule is; 0 for a calm one."""

    loss: float = 0.0
    repeat: float = 0.0
    late: float = 0.0
    crashes: float = 0.0  # of every kind, expected in CALM_S


@dataclass(slots=True, eq=False)
class World:
    """Time, chance, and the network."""

    seed: int
    weather: Weather
    now: float = 0.0
    rng: Random = field(init=False)
    trace: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=400))
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _number: int = 0

    def __post_init__(self) -> None:
        self.rng = Random(self.seed)

    @property
    def stormy(self) -> bool:
        """Whether faults still happen."""
        return self.now < CALM_S

    def chance(self, probability: float) -> bool:
        """Whether something of this probability happens; nothing bad does once it is calm."""
        return self.stormy and self.rng.random() < probability

    def after(self, delay_s: float, do: Callable[[], None]) -> None:
        """Do something later."""
        self.at(self.now + delay_s, do)

    def at(self, time: float, do: Callable[[], None]) -> None:
        """Do something at a time; what is due at the same time happens in order."""
        self._number += 1
        heappush(self._events, (time, self._number, do))

    def delay_s(self) -> float:
        """Draw how long a message takes."""
        if self.chance(self.weather.late):
            return self.rng.uniform(0.0, 3.0)
        return self.rng.expovariate(100.0)

    def send(self, deliver: Callable[[], None]) -> None:
        """Send on a connection that loses, repeats and reorders."""
        if self.chance(self.weather.loss):
            return
        copies = 2 if self.chance(self.weather.repeat) else 1
        for _ in range(copies):
            self.after(self.delay_s(), deliver)

    def note(self, what: str) -> None:
        """Remember a step for the report of a failure."""
        self.trace.append((self.now, what))

    def run(self, is_over: Callable[[], bool]) -> None:
        """Let everything happen, in order, until it is over.

        Raises: AssertionError if it never is.
        """
        while not (self.now > CALM_S and is_over()):
            at, _, do = heappop(self._events)
            assert at < END_S, "accepted rollouts have not all ended and been acknowledged"
            self.now = at
            do()


class Broker:
    """The ledger with a journal that commits late, and an outbox that waits for it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.nodes: dict[str, Any] = {}
        self.trainers: dict[str, Any] = {}
        self.routes: dict[str, int] = {}  # the connection that each trainer last said hello on
        self.journal = MemoryJournal()
        self.life = 1
        self.events = 0
        self.up = True
        self.ledger = Ledger(RULES, self.broker_id)
        self.crashed = False
        self._start(0)

    @property
    def broker_id(self) -> str:
        """The name of this life."""
        return f"broker-{self.life}"

    def _start(self, position: int) -> None:
        self.durable = position
        self.gated: deque[tuple[int, Instruction]] = deque()
        self.grounds = Grounds()
        self.work: list[Dispatch] = []  # that need not wait, as in the broker
        self.bodies: Counter[int] = Counter()
        self.promises = Promises(RULES, self.ledger, self.journal.changes)
        self.committing = False
        for change in self.journal.changes:
            if isinstance(change, Keep) and isinstance(change.entry, Rewound):
                self.bodies[change.order] = 0
            self._book_body(change)
        self._tick(self.life)

    def crash(self) -> None:
        """Die; what was not durable never was. Come back after a while."""
        if not self.up:
            return
        self.world.note(f"{self.broker_id} crashes at {self.durable}/{len(self.journal.changes)}")
        self.up, self.crashed = False, True
        self.journal.crash(self.durable)
        self.world.after(self.world.rng.uniform(0.1, 3.0), self._restart)

    def _restart(self) -> None:
        self.life += 1
        self.up = True
        self.ledger = self.journal.recover(RULES, self.broker_id, self.world.now)
        self.ledger.validate()
        self.routes.clear()
        for trainer in self.trainers.values():
            trainer.disconnect()
        self._start(len(self.journal.changes))

    def _tick(self, life: int) -> None:
        if life != self.life or not self.up:
            return
        self.handle(Tick())
        for node in self.nodes.values():
            self.world.send(node.hears(Boot(self.broker_id)))
        self.world.after(TICK_S, lambda: self._tick(life))

    def from_worker(self, message: Any, body_bytes: int = 0) -> None:
        """Take a worker's message, if there is anybody to take it."""
        if self.up:
            self.handle(FromWorker(message, body_bytes))

    def from_trainer(self, client_id: str, link: int, message: Any, body_bytes: int) -> None:
        """Take a trainer's message; a ping is answered at once."""
        if not self.up:
            return
        if isinstance(message, Hello):
            self.routes[client_id] = link
        if isinstance(message, Ping) and client_id not in self.routes:
            self.trainers[client_id].tell(Problem("hello_first", "", "say hello first"), link)
        elif isinstance(message, Ping):
            self.handle(FromTrainer(client_id, message))
            unacked = self.ledger.unacked(client_id)
            self._tell(client_id, Pong(self.broker_id, message.nonce, unacked))
        else:
            self.handle(FromTrainer(client_id, message, body_bytes))

    def trainer_gone(self, client_id: str) -> None:
        """Notice that a trainer's connection broke."""
        if self.up and self.routes.pop(client_id, None) is not None:
            self.handle(TrainerGone(client_id))

    def close_pipe(self, worker_id: str) -> None:
        """Close a worker's pipe, as for a key that is revoked; what is on its way may arrive."""
        if self.up:
            self.handle(PipeClosed(worker_id))

    def _tell(self, client_id: str, message: Any) -> None:
        self.trainers[client_id].tell(message, self.routes.get(client_id, 0))

    def handle(self, event: Event) -> None:
        """Let the ledger decide; keep, then gate, what it says."""
        self.world.note(f"> {event}")
        self.promises.before()
        instructions = self.ledger.handle(event, self.world.now)
        self.events += 1
        if self.events % VALIDATE_EVERY == 0:
            self.ledger.validate()
        self.promises.after(event, instructions)
        for instruction in instructions:
            self.world.note(f"  {instruction}")
            if isinstance(instruction, Reply):
                self._to_worker(instruction.worker_id, instruction.message)
            elif isinstance(instruction, DropTrainer):
                self.routes.pop(instruction.client_id, None)
            elif isinstance(instruction, Dispatch) and self._may_leave(instruction):
                self.work.append(instruction)
            elif isinstance(instruction, Forget) or not self.journal.take(instruction):
                self.gated.append((len(self.journal.changes), instruction))
            else:
                self._book_body(instruction)
                if isinstance(instruction, Keep | KeepValue):
                    self.grounds.kept(instruction, len(self.journal.changes))
        self._commit_soon()
        self._release()

    def _may_leave(self, work: Dispatch) -> bool:
        return self.grounds.of(work) <= self.durable

    def _book_body(self, change: Instruction) -> None:
        if isinstance(change, Keep):
            self.bodies[change.order] += change.body

    def _commit_soon(self) -> None:
        behind = len(self.journal.changes) - self.durable
        if behind and not self.committing:
            self.committing = True
            life = self.life
            rows = self.world.rng.randint(1, behind)
            self.world.after(self.world.rng.expovariate(50.0), lambda: self._commit(life, rows))

    def _commit(self, life: int, rows: int) -> None:
        if life == self.life and self.up:
            self.committing = False
            self.durable += rows
            self._release()
            self._commit_soon()

    def _release(self) -> None:
        while self.gated and self.gated[0][0] <= self.durable:
            self._carry_out(self.gated.popleft()[1])
        self.grounds.durable(self.durable)
        while self.work:
            self._dispatch(self.work.pop(0))

    def _carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case Dispatch():
                self._dispatch(instruction)
            case Settle(worker_id, rollout_id, attempt):
                self._to_worker(worker_id, ResultAck(((rollout_id, attempt),)))
            case Deliver(client_id, _, result):
                self._tell(client_id, result)
            case Tell(client_id, message):
                self._tell(client_id, message)
            case StopAttempts(held):
                for node in self.nodes.values():
                    self.world.send(node.hears(Stop(held)))
            case FreeBody(order):
                self.bodies[order] = 0
            case Forget():
                self.journal.take(instruction)

    def _dispatch(self, work: Dispatch) -> None:
        assert self.bodies[work.task_order] == 1, f"the task of {work.rollout_id} is there"
        assert self.bodies[work.order] >= work.stage, f"{work.rollout_id} has each stage's body"
        message = Work(
            self.broker_id,
            work.rollout_id,
            work.group_id,
            work.task_id,
            work.task_kind,
            RULES.stages[work.stage].name,
            work.attempt,
            60.0,
            buffers(10),
        )
        self._to_worker(work.worker_id, message)

    def _to_worker(self, worker_id: str, message: Any) -> None:
        node = self.nodes[worker_id.split(".", maxsplit=1)[0]]
        self.world.send(node.hears(message, worker_id))
