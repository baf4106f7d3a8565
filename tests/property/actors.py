"""What stands around the simulated broker: worker nodes and trainers, as the real ones behave."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from engine.messages import (
    Accepted,
    Ack,
    Boot,
    Cancel,
    Cancelled,
    Credit,
    Heartbeat,
    HeartbeatReply,
    Hello,
    HelloAgain,
    Ping,
    Pong,
    Problem,
    Refusal,
    Result,
    ResultAck,
    StageResult,
    Stop,
    Submit,
    Welcome,
    Work,
    WorkerGoodbye,
    WorkerHello,
    WorkerLost,
    WorkerWelcome,
)
from engine.records import Failure, Usage

from ..ledger_kit import Held, buffers
from .simulation import RULES, Broker, World

RETRY_S = 1.0
POISON = "poison"


@dataclass(slots=True, eq=False)
class Node:
    """A worker's bus side and its handlers. `held` maps an attempt to its result, None if it runs.

    Results are kept until settled or dropped, and sent again after every welcome and while no
    answer comes.
    """

    world: World
    broker: Broker
    name: str
    host: str
    stage: str
    slots: int
    boot: int = 1
    up: bool = True
    broker_id: str = ""
    paused_until: float = 0.0
    held: dict[Held, StageResult | None] = field(default_factory=dict)

    @property
    def worker_id(self) -> str:
        """The name of this process; a new one at every start."""
        return f"{self.name}.{self.boot}"

    def start(self) -> None:
        """Come up with nothing held."""
        self.up, self.broker_id, self.held = True, "", {}
        self._beat(self.boot)

    def hears(self, message: Any, worker_id: str = "") -> Callable[[], None]:
        """Return the arrival of a message, for one process of this node or for whichever is up."""
        return lambda: self._arrive(message, worker_id)

    def _arrive(self, message: Any, worker_id: str) -> None:
        if not self.up or worker_id not in {"", self.worker_id}:
            return
        if self.paused_until > self.world.now:
            pause_s = self.paused_until - self.world.now
            self.world.after(pause_s, lambda: self._arrive(message, worker_id))
        else:
            self._receive(message)

    def _receive(self, message: Any) -> None:
        match message:
            case Work():
                self._begin(message)
            case WorkerWelcome(broker_id, _, drop):
                self.broker_id = broker_id
                self._drop(drop)
                self._resend()
            case HeartbeatReply(broker_id, drop):
                self._drop(drop)
                if broker_id != self.broker_id:
                    self._hello()
            case HelloAgain():
                self._hello()
            case Boot(broker_id) if broker_id != self.broker_id:
                self._hello()
            case Stop(held):
                self._drop(held)
            case ResultAck(held):
                for key in held:
                    if self.held.get(key) is not None:
                        del self.held[key]

    def _say(self, message: Any, body_bytes: int = 0) -> None:
        self.world.send(lambda: self.broker.from_worker(message, body_bytes))

    def _hello(self) -> None:
        slots, held = self.slots, tuple(self.held)
        hello = WorkerHello(self.worker_id, self.name, self.host, self.stage, slots, 150, held)
        self._say(hello)

    def _beat(self, boot: int) -> None:
        if boot != self.boot or not self.up:
            return
        if self.paused_until <= self.world.now:
            if self.broker_id:
                self._say(Heartbeat(self.worker_id, tuple(self.held), 0.0))
            else:
                self._hello()
            if self.world.rng.random() < 0.2:
                self._resend()
        self.world.after(RULES.heartbeat_s, lambda: self._beat(boot))

    def _resend(self) -> None:
        for result in self.held.values():
            if result is not None:
                self._say(result, sum(buffer.size_bytes for buffer in result.buffers))

    def _begin(self, work: Work) -> None:
        key = (work.rollout_id, work.attempt)
        if work.broker_id != self.broker_id or key in self.held:
            return
        self.held[key] = None
        boot = self.boot
        deadly = work.rollout_id.startswith(POISON) and self.stage == "run"
        over = (lambda: self._die(boot, key)) if deadly else (lambda: self._finish(boot, key))
        self.world.after(self.world.rng.expovariate(4.0), over)

    def _finish(self, boot: int, key: Held, status: str = "") -> None:
        if boot != self.boot or not self.up or self.held.get(key, key) is not None:
            return
        if self.paused_until > self.world.now:
            pause_s = self.paused_until - self.world.now
            self.world.after(pause_s, lambda: self._finish(boot, key, status))
            return
        result = self.held[key] = self._result(key, status or self._status())
        self._say(result, sum(buffer.size_bytes for buffer in result.buffers))

    def _status(self) -> str:
        if self.world.chance(0.05):
            return "failed"
        if self.world.chance(0.05):
            return "released"
        return "lost" if self.world.chance(0.02) else "done"

    def _result(self, key: Held, status: Any) -> StageResult:
        rollout_id, attempt = key
        rng = self.world.rng
        failure = Failure(self.stage, attempt, "sandbox", "SandboxError", "bad luck", self.name)
        done = status == "done"
        return StageResult(
            self.worker_id,
            rollout_id,
            self.stage,
            attempt,
            status,
            0.1,
            outcome="truncated" if done and self.stage == "run" and rng.random() < 0.2 else None,
            final=done and self.stage == "run" and rng.random() < 0.1,
            pinned=done and self.stage == "init" and rng.random() < 0.5,
            reward=rng.random() if done else None,
            failure=failure if status in {"failed", "lost"} else None,
            usage=Usage(1, 5, 0.1),
            buffers=buffers(10, self.stage) if done else (),
        )

    def _drop(self, held: tuple[Held, ...]) -> None:
        for key in held:
            if self.held.get(key, None) is not None:
                del self.held[key]
            elif key in self.held:
                self._stop(self.boot, key)

    def _stop(self, boot: int, key: Held) -> None:
        self.world.after(0.02, lambda: self._finish(boot, key, "cancelled"))

    def _die(self, boot: int, key: Held) -> None:
        if boot == self.boot and self.up and self.held.get(key, key) is None:
            self.kill(culprit=key[0] if self.world.rng.random() < 0.5 else "")

    def kill(self, down_s: float = 0.2, culprit: str = "") -> None:
        """Lose the process that runs handlers; its bus side says so, and starts another."""
        if self.up:
            self.world.note(f"{self.worker_id} dies, culprit {culprit!r}")
            self._say(WorkerLost(self.worker_id, culprit, "Died", "exit status -9"))
            self._go(down_s)

    def lose_power(self, down_s: float) -> None:
        """Go without a word."""
        if self.up:
            self.world.note(f"{self.worker_id} is gone for {down_s}")
            self._go(down_s)

    def leave(self) -> None:
        """Say goodbye, if nothing is held."""
        if self.up and not self.held:
            self._say(WorkerGoodbye(self.worker_id))
            self._go(0.5)

    def _go(self, down_s: float) -> None:
        self.up = False
        self.boot += 1
        self.world.after(down_s, self.start)


@dataclass(slots=True, eq=False)
class Trainer:
    """A trainer. Its submits, results and cancels outlive its crashes; its connection does not."""

    world: World
    broker: Broker
    client_id: str
    submits: list[Submit]
    window: int
    link: int = 0  # the connection; messages of an older one are lost
    broker_id: str = ""
    heard_at: float = 0.0
    results: dict[str, Result] = field(default_factory=dict)
    by_seq: dict[int, Result] = field(default_factory=dict)
    last_seq: int = 0  # of results, or of those that the broker says it need not send
    unacked: list[int] = field(default_factory=list)
    accepted: set[str] = field(default_factory=set)
    cancels: dict[str, Cancel] = field(default_factory=dict)
    receipts: set[str] = field(default_factory=set)
    _arrivals: list[float] = field(default_factory=lambda: [0.0, 0.0])

    @property
    def is_done(self) -> bool:
        """Whether everything it wants has ended, and every question is answered."""
        wanted = sum(len(submit.rollout_ids) for submit in self.submits)
        return len(self.results) == wanted and not self.cancels

    def start(self) -> None:
        """Connect, and go on from what is known."""
        self.connect()
        self._beat()

    def connect(self) -> None:
        """Open a new connection; what was on the old one is lost."""
        self.disconnect()
        self._say(Hello(self.client_id, self.window))

    def disconnect(self) -> None:
        """Lose the connection and everything on its way."""
        self.link += 1
        self.broker_id = ""
        self._arrivals = [self.world.now, self.world.now]

    def crash(self) -> None:
        """Forget everything but results and wishes."""
        self.world.note(f"{self.client_id} crashes")
        self.accepted.clear()
        self.unacked.clear()
        self.broker.trainer_gone(self.client_id)
        self.disconnect()

    def tell(self, message: Any, link: int) -> None:
        """Send it a message, in order, unless that connection breaks before."""
        self._carry(1, link, lambda: self._receive(message))

    def _say(self, message: Any, body_bytes: int = 0) -> None:
        link, name = self.link, self.client_id
        self._carry(0, link, lambda: self.broker.from_trainer(name, link, message, body_bytes))

    def _carry(self, way: int, link: int, deliver: Callable[[], None]) -> None:
        if link == self.link:
            sooner = self.world.now + self.world.delay_s()
            at = self._arrivals[way] = max(self._arrivals[way], sooner)
            self.world.at(at, lambda: deliver() if link == self.link else None)

    def _beat(self) -> None:
        if self.world.now - self.heard_at > 4 * RULES.heartbeat_s:
            self.heard_at = self.world.now
            self.connect()
        elif self.broker_id:
            self._say(Ping(0))
            self._ask()
            if self.unacked and self.world.rng.random() < 0.7:
                self._say(Ack(tuple((seq, seq) for seq in self.unacked), self.window))
                self.unacked.clear()
        self.world.after(RULES.heartbeat_s, self._beat)

    def _ask(self) -> None:
        for submit in self.submits:
            missing = any(name not in self.results for name in submit.rollout_ids)
            if missing and submit.submit_id not in self.accepted:
                self._say(submit, 10)
        for cancel in self.cancels.values():
            self._say(cancel)

    def cancel(self, cancel: Cancel) -> None:
        """Ask for a cancel until it is answered."""
        self.cancels[cancel.cancel_id] = cancel

    def _receive(self, message: Any) -> None:
        self.heard_at = self.world.now
        match message:
            case Welcome():
                self.broker_id = message.broker_id
                self.last_seq = max(self.last_seq, message.acked_through)
                self.accepted.clear()
                self.unacked.clear()
                self._ask()
            case Pong(broker_id) if broker_id != self.broker_id:
                self._say(Hello(self.client_id, self.window))
            case Problem("hello_first"):
                self._say(Hello(self.client_id, self.window))
            case Accepted(submit_id):
                self.accepted.add(submit_id)
            case Refusal(_, code, why):
                assert code in {"full", "hello_first"}, f"refused: {code} {why}"
            case Credit():
                self._ask()
            case Cancelled():
                self._cancelled(message)
            case Result() if self.broker_id:
                self._take(message)

    def _cancelled(self, answer: Cancelled) -> None:
        cancel = self.cancels.pop(answer.cancel_id, None)
        if cancel is None:
            return
        named = [receipt.rollout_id for receipt in answer.receipts]
        missing = self._targets(cancel).difference(named, answer.ended)
        assert not missing or answer.unknown, f"{answer} does not speak of {missing}"
        assert len(set(named)) == len(named), f"{answer} has one receipt for a rollout"
        assert not set(named) & set(answer.ended), f"{answer} ended rollouts once"
        self.receipts.update(named)
        for name in named:
            outcome = self.results[name].outcome if name in self.results else "cancelled"
            assert outcome == "cancelled", f"{name} has a receipt and ended as {outcome}"

    def _targets(self, cancel: Cancel) -> set[str]:
        groups = [s.rollout_ids for s in self.submits if s.group_id in cancel.group_ids]
        return {*cancel.rollout_ids, *(name for group in groups for name in group)}

    def _take(self, result: Result) -> None:
        self.unacked.append(result.seq)
        if result.seq in self.by_seq:
            assert result == self.by_seq[result.seq], f"result {result.seq} is what it was"
            return
        assert result.seq == self.last_seq + 1, f"{result.seq} after {self.last_seq}"
        self.last_seq = result.seq
        assert result.rollout_id not in self.results, f"{result.rollout_id} ends once"
        if result.outcome in {"failed", "cancelled"}:
            assert result.reward is None, f"{result.rollout_id}: no reward"
            assert not result.trainable, f"{result.rollout_id}: not trainable"
        else:
            assert result.rollout_id not in self.receipts, f"{result.rollout_id} is cancelled"
            assert result.reward is not None, f"{result.rollout_id} was evaluated"
        self.by_seq[result.seq] = self.results[result.rollout_id] = result
