"""What must survive: entries and values in SQLite, bodies in segment files beside it.

Reading order: journal (what the broker calls), writer (the thread that commits), store (SQLite),
segments (bodies).
"""

from .journal import Durability, Journal, NullJournal
from .segments import Location
from .store import Stored

__all__ = ["Durability", "Journal", "Location", "NullJournal", "Stored"]
