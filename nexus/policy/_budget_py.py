# cython: annotation_typing=False
"""How many retries may be under way at once. One source, compiled as ``_budget_c``."""

from __future__ import annotations

__all__ = ["RetryBudget"]


class RetryBudget:
    """At most ``max(floor, ratio * active requests)`` retries under way at once, in one worker.

    Without it a slow upstream gets three times the load just when it can bear the least (Google
    SRE book, *Handling Overload*; Envoy's ``retry_budget``). The floor lets a quiet gateway retry.
    """

    __slots__ = ("active", "floor", "ratio", "refused", "retrying")

    def __init__(self, ratio: float = 0.2, floor: int = 3) -> None:
        if not 0 <= ratio <= 1:
            raise ValueError(f"ratio must be from 0 to 1, got {ratio}")
        if floor < 0:
            raise ValueError(f"floor must be at least 0, got {floor}")
        self.ratio = ratio
        self.floor = floor
        #: Requests under way, retries among them.
        self.active = 0
        #: Retries under way, from the decision to the end of the attempt.
        self.retrying = 0
        #: Retries that the budget forbade, ever.
        self.refused = 0

    def begin(self) -> None:
        """A request started."""
        self.active += 1

    def end(self) -> None:
        """A request ended."""
        self.active -= 1

    def try_acquire(self) -> bool:
        """Room for one more retry? Then it counts until :meth:`release`."""
        if self.retrying >= max(self.floor, int(self.ratio * self.active)):
            self.refused += 1
            return False
        self.retrying += 1
        return True

    def release(self) -> None:
        """The attempt that :meth:`try_acquire` allowed has ended."""
        self.retrying -= 1
