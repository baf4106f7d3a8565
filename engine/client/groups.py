"""Rollouts into whole groups, as their last member arrives."""

from ..trajectories import Rollout


class Groups:
    """Holds the rollouts of groups that are not complete."""

    def __init__(self) -> None:
        self._open: dict[str, list[Rollout]] = {}

    def add(self, rollout: Rollout) -> list[Rollout] | None:
        """Take a rollout; return its group, in order of arrival, if it is complete."""
        members = self._open.setdefault(rollout.group_id, [])
        members.append(rollout)
        if len(members) < rollout.group_size:
            return None
        del self._open[rollout.group_id]
        return members

    def rest(self) -> list[list[Rollout]]:
        """Return and forget what is left of groups whose other members never come."""
        left = list(self._open.values())
        self._open.clear()
        return left
