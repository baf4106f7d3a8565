"""What of a sampler is journalled; the rest follows from the rollouts that come back with it."""

from ..typed import Count, Record, Text, compile_decoder
from .records import BatchReport, Ending, Sealed, Spec, Verdict


class GroupState(Record, frozen=True):
    """A group that had refills: how many, and which of its rollouts they stand in for."""

    prompt: int
    refills: int
    replaced: tuple[str, ...]


class ClosedState(Record, frozen=True):
    """A group with a verdict and rollouts under way: which of its rollouts a report has counted."""

    prompt: int
    counted: tuple[str, ...]


class SamplerState(Record, frozen=True):
    """A sampler between two events."""

    spec: Spec
    source: Ending
    why: Text
    given: Count | None
    taken: Count
    number: Count
    accepted: Count
    beyond: tuple[Count, ...]
    open: tuple[Count, ...]
    kept: tuple[Count, ...]
    kept_before: Count
    judged_before: Count
    first_version: Count
    sealed: tuple[Sealed, ...]
    verdicts: tuple[tuple[Count, Verdict], ...]
    settling: tuple[tuple[Count, Count], ...]
    closed: tuple[ClosedState, ...]
    refilled: tuple[GroupState, ...]
    report: BatchReport
    elapsed_s: float
    over: bool


read_state = compile_decoder(SamplerState)
