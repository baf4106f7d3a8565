"""A finding: one thing that is wrong, who owns it, its figures, and what to do.

Does not know: how it was found.
Invariants: `name` is one of `NAMES`, which docs/observability.md explains one by one.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

Severity = Literal["critical", "warning", "notice"]
SEVERITIES: tuple[Severity, ...] = ("critical", "warning", "notice")
NAMES = (
    "broker-unreachable",
    "hung-handler",
    "stopped-host",
    "silent-worker",
    "slow-attempt",
    "stalled-backend",
    "backend-not-open",
    "host-not-there",
    "missing-node",
    "silent-node",
    "stage-without-worker",
    "full-queue",
    "full-bound",
    "disk-full",
    "slow-disk",
    "slow-loop",
    "client-not-acknowledging",
    "client-away",
    "sandboxes-failing",
    "leases-expired",
    "refused-messages",
    "recovering",
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. Texts are for people; `about` names the same for programs.

    since_s: for how long, in seconds; None if nobody knows. measured, bound: the figure, and the
    one that it is held against.
    """

    severity: Severity
    name: str
    who: str
    what: str
    measured: str
    bound: str
    advice: str
    since_s: float | None = None
    about: dict[str, Any] = field(default_factory=dict)


def in_order(found: list[Finding]) -> list[Finding]:
    """Return findings, the most severe first, and of those the longest first."""
    return sorted(found, key=lambda each: (SEVERITIES.index(each.severity), -(each.since_s or 0.0)))


def seconds(value: float) -> str:
    """Return a duration for people."""
    if value == float("inf"):
        return "more than half an hour"
    return f"{value:.0f} s" if value >= 100 else f"{value:.3g} s"
