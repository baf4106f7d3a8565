"""Messages of dynamic sampling on the edge trainer - broker.

Both sides tell their whole state, as numbers that only grow, so that a message that comes twice or
is overtaken by a later one changes nothing.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from ..sampling.records import Sealed, SourceEnd, Spec, Verdict
from ..typed import Count, Id, Length, Text


@dataclass(frozen=True, slots=True)
class Sample:
    """Open a sampling, or tell how far the trainer is with it; answered by `wanted`."""

    kind: ClassVar[str] = "sample"
    sampling_id: Annotated[Id, "names the sampling across the trainer's own restarts"]
    spec: Annotated[Spec, "the same every time"]
    taken: Annotated[Count, "batches that the trainer is done with: acknowledged by this"] = 0
    source: Annotated[SourceEnd, "why no more prompts come; empty while they may"] = ""
    given: Annotated[Count, "prompts that the source gave in all, once it has ended"] = 0
    why: Annotated[Text, "the same for people"] = ""
    again: Annotated[bool, "whether to tell every verdict and batch again: after a hello"] = False


@dataclass(frozen=True, slots=True)
class EndSample:
    """Close a sampling: what is open is cancelled, and everything of it acknowledged."""

    kind: ClassVar[str] = "end_sample"
    sampling_id: Annotated[Id, "the sampling"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """How many prompts to submit, in all: credit, given exactly as capacity frees."""

    kind: ClassVar[str] = "wanted"
    sampling_id: Annotated[Id, "the sampling"]
    prompts: Annotated[Count, "submit the prompts before this one"]
    accepted: Annotated[Count, "of them, those before this one are accepted already"]
    taken: Annotated[Count, "batches that the trainer was done with"]
    refills: Annotated[
        tuple[tuple[Count, Count], ...],
        "[prompt, rollouts]: submit more rollouts of this prompt's group, up to so many in all",
    ] = ()


@dataclass(frozen=True, slots=True)
class Judged:
    """A group is in no batch: acknowledge its results as they come."""

    kind: ClassVar[str] = "judged"
    sampling_id: Annotated[Id, "the sampling"]
    verdicts: Annotated[
        tuple[tuple[Count, Verdict], ...], Length(1, 1_000_000), "[prompt, verdict]"
    ]


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch is complete; sent again when its report has its last figures."""

    kind: ClassVar[str] = "batch"
    sampling_id: Annotated[Id, "the sampling"]
    batch: Annotated[Sealed, "which groups are in it, and where its work went"]
    final: Annotated[bool, "whether the report's figures will not change again"]
