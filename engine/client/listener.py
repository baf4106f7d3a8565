"""What the client's core hands to a sampling, without knowing what one does with it."""

from typing import Protocol

from ..messages import Batch, Judged, Wanted
from ..trajectories import Rollout


class Listener(Protocol):
    """A sampling, as far as the core hands it what comes for it."""

    def add(self, rollout: Rollout) -> None:
        """Take a result."""
        ...

    def hear(self, message: Wanted | Judged | Batch) -> None:
        """Take what the broker says of the sampling."""
        ...

    def step(self, wait_s: float) -> None:
        """Go on with what is to be submitted, waiting so long for a prompt at the most."""
        ...

    def refuse(self, why: str) -> None:
        """Take that the broker will not have it."""
        ...

    def welcome(self) -> None:
        """Tell a broker that has just welcomed us how far we are."""
        ...

    def finish(self) -> None:
        """Take that the client closes."""
        ...
