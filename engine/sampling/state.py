"""What of a sampler is journalled; the rest follows from the rollouts that come back with it."""

from ..typed import Count, Record, Text, compile_decoder
from .records import BatchReport, Ending, Sealed, Spec, Verdict


class GroupState(Record, frozen=True):
    """A group that had refills: how many, and which of its rollouts they stand in for."""

    prompt: int
    refills: int
    replaced: tuple[str, ...]


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
    refilled: tuple[GroupState, ...]
    report: BatchReport
    elapsed_s: float
    over: bool


read_state = compile_decoder(SamplerState)
