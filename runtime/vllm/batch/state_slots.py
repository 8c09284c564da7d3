"""State slots: the row of each recurrent layer's state that belongs to a request.

A request has its slot from its first token until it finishes or is preempted, in steps without it too. One that was preempted
begins again at its first token, for which every layer takes its state as zero: a slot needs no cleaning.
"""

from __future__ import annotations

from ...core.errors import FxhloError


class StateSlots:
    """Slots 1 to `capacity`; none, and 0 for each request, where the model keeps no state per request."""

    def __init__(self, capacity: int) -> None:
        self._none = not capacity
        self._free = list(range(capacity, 0, -1))
        self._slots: dict[str, int] = {}

    def of(self, request_id: str, computed: int) -> int:
        """The request's slot; takes a free one where it has none. computed: its tokens before this step.

        Raises FxhloError where it has tokens and no slot, or no slot is free.
        """
        if self._none:
            return 0
        slot = self._slots.get(request_id)
        if slot is None:
            if computed or not self._free:
                raise FxhloError(
                    f"the request {request_id} has {computed} computed tokens and no state"
                    if computed
                    else "vLLM runs more than max_num_seqs requests at once, and each needs a state",
                    next_step="report this with the engine's arguments",
                )
            slot = self._slots[request_id] = self._free.pop()
        return slot

    def free(self, request_id: str) -> None:
        """Gives the slot back, if there is one."""
        slot = self._slots.pop(request_id, None)
        if slot is not None:
            self._free.append(slot)
