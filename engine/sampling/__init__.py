"""Dynamic sampling: which groups make a batch, how many prompts that takes, and what is stopped.

Pure rules beside the ledger, which drives them (`engine/ledger/batches.py`).
"""

from .filters import FILTERS, Filter, load_filters
from .groups import Complete, Decision, Judge, Stop, StopStale
from .records import (
    VERDICTS,
    BatchReport,
    Member,
    Over,
    Reason,
    Sealed,
    SourceEnd,
    Spec,
    Staleness,
    Tally,
    Verdict,
)
from .sampler import Sampler
from .state import SamplerState, read_state

__all__ = [
    "FILTERS",
    "VERDICTS",
    "BatchReport",
    "Complete",
    "Decision",
    "Filter",
    "Judge",
    "Member",
    "Over",
    "Reason",
    "Sampler",
    "SamplerState",
    "Sealed",
    "SourceEnd",
    "Spec",
    "Staleness",
    "Stop",
    "StopStale",
    "Tally",
    "Verdict",
    "load_filters",
    "read_state",
]
