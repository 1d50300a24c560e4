"""How many engines may sleep beside the one that is awake. PURE."""

from collections.abc import Sequence
from dataclasses import dataclass

from deployments.memory.plan import GIB, Plan

# What a sleeping engine keeps of the card: its CUDA context and workspaces. Its CUDA graphs go to
# the host (`--sleep-mode-offload-cudagraph`). Published figures without that are 0.4 to 1.2 GiB.
SLEEPER_BYTES = int(0.5 * GIB)
# What the rest of a server, the page cache for one load and a desktop want of the host.
_HOST_REST_BYTES = 10 * GIB
_ADVISED_HEADROOM_BYTES = int(1.5 * GIB)


@dataclass(frozen=True)
class WarmPlan:
    """The memory with `num_sleepers` engines asleep and the largest of all models awake."""

    num_sleepers: int
    card_left_bytes: int  # of the card for other programs; negative where it does not fit
    host_needed_bytes: int

    @property
    def fits_card(self) -> bool:
        return self.card_left_bytes >= 0

    @property
    def has_room_for_desktop(self) -> bool:
        """Whether a desktop and a browser still fit on the card."""
        return self.card_left_bytes >= _ADVISED_HEADROOM_BYTES


def warm_plans(plans: Sequence[Plan]) -> list[WarmPlan]:
    """One plan for each number of sleepers, none to all models but one, in one room.

    Any model may be the one that is awake, so the one that needs most counts on the card, and the
    largest weights count on the host.
    """
    awake_bytes = max(
        plan.weights_bytes + plan.overhead_bytes + plan.kv_wanted_bytes for plan in plans
    )
    largest = sorted((plan.weights_bytes for plan in plans), reverse=True)
    total_bytes = plans[0].available_bytes
    return [
        WarmPlan(
            num_sleepers=number,
            card_left_bytes=total_bytes - awake_bytes - number * SLEEPER_BYTES,
            host_needed_bytes=sum(largest[:number]) + _HOST_REST_BYTES,
        )
        for number in range(len(plans))
    ]
