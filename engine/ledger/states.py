"""The life of a rollout as a table. Everything that the broker may do with a rollout is in it.

A rollout is *ready* for the stage it has reached (before the first stage one says queued), *leased*
to a worker, *delayed* after a failed attempt, *stopping* after a cancel until its worker has
stopped, *ended* with an outcome until the trainer acknowledges it, and *acked* until its retention
time is over.
"""

from typing import Literal, get_args

State = Literal["ready", "leased", "delayed", "stopping", "ended", "acked"]
Action = Literal[
    "dispatch", "adopt", "advance", "end", "release", "delay", "due", "stop", "rewind", "ack"
]

STATES: tuple[State, ...] = get_args(State)
ACTIONS: tuple[Action, ...] = get_args(Action)
LIVE: frozenset[State] = frozenset({"ready", "leased", "delayed", "stopping"})
RUNNING: frozenset[State] = frozenset({"leased", "stopping"})

TRANSITIONS: dict[tuple[State, Action], State] = {
    ("ready", "dispatch"): "leased",
    ("ready", "adopt"): "leased",
    ("ready", "advance"): "ready",
    ("ready", "end"): "ended",
    ("ready", "rewind"): "ready",
    ("leased", "advance"): "ready",
    ("leased", "release"): "ready",
    ("leased", "delay"): "delayed",
    ("leased", "end"): "ended",
    ("leased", "stop"): "stopping",
    ("leased", "rewind"): "ready",
    ("delayed", "due"): "ready",
    ("delayed", "adopt"): "leased",
    ("delayed", "advance"): "ready",
    ("delayed", "end"): "ended",
    ("delayed", "rewind"): "ready",
    ("stopping", "end"): "ended",
    ("ended", "ack"): "acked",
}

MEANING: dict[Action, str] = {
    "dispatch": "given to a worker against its credit: attempt + 1, a lease",
    "adopt": "a worker that holds the latest attempt is known again; nothing is started over",
    "advance": "a stage's result is committed; on to the next stage",
    "end": "the last stage is committed, or the rollout failed or was cancelled",
    "release": "the attempt was lost through no fault of the rollout; back in the queue",
    "delay": "the attempt failed; the next one waits a little",
    "due": "the wait after a failed attempt is over",
    "stop": "cancelled while a worker is at it",
    "rewind": "its host, or what it had pinned there, is lost; back to the first stage",
    "ack": "the trainer has acknowledged the result",
}
