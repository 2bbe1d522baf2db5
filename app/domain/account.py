"""The books of one stage of a pipeline."""

from typing import NamedTuple


class Account(NamedTuple):
    """What became of everything that a stage took over. Each figure is counted or measured by itself, none is worked
    out from the others, so that `missing` finds what they do not explain."""

    accepted: int = 0
    delivered: int = 0
    dead: int = 0
    """Set aside as dead letters."""
    dropped: int = 0
    """By the stated policy of a full buffer."""
    pending: int = 0

    @property
    def missing(self) -> int:
        """0, always; more where something was lost, less where something was counted twice."""
        return self.accepted - self.delivered - self.dead - self.dropped - self.pending
