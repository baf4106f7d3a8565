"""What of a sampler is journalled; the rest follows from the rollouts that come back with it."""

from dataclasses import dataclass

from ..typed import Count, Text, compile_decoder
from .records import BatchReport, Ending, Sealed, Spec, Verdict


@dataclass(frozen=True, slots=True)
class GroupState:
    """A group that had refills: how many, and which of its rollouts they stand in for."""

    prompt: int
    refills: int
    replaced: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SamplerState:
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
