"""Which events were seen before.

Delivery is at least once: a producer that lost an acknowledgement sends again, a consumer that died
between effect and commit reads again. The id of an event is the same each time.
"""

from __future__ import annotations

__all__ = ["RecentIds"]


class RecentIds:
    """The last ``capacity`` ids of this worker, the oldest forgotten first.

    In memory: it recognises what a producer sent twice, not what another worker did before a
    restart. Effects that must not happen twice across restarts carry the id to where the effect is.
    """

    __slots__ = ("_capacity", "_ids")

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._ids: dict[str, None] = {}

    def claim(self, event_id: str) -> bool:
        """True for the first to ask; everybody later is a duplicate. O(1)."""
        if event_id in self._ids:
            return False
        if self._capacity:
            if len(self._ids) >= self._capacity:
                del self._ids[next(iter(self._ids))]
            self._ids[event_id] = None
        return True

    def release(self, event_id: str) -> None:
        """The claim came to nothing: a further delivery is to be handled."""
        self._ids.pop(event_id, None)

    def __len__(self) -> int:
        return len(self._ids)
