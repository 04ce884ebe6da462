"""The processes that a run computes on."""

from dataclasses import dataclass, field

from ddp_ft.distributed.environment import Launch, launch_started
from ddp_ft.distributed.stop_request import StopRequest
from ddp_ft.distributed.world import World


@dataclass(frozen=True)
class Machine:
    """The processes of a job as this one sees them, how they were launched, and what may ask them to stop."""

    world: World
    launch: Launch
    stop: StopRequest = field(default_factory=StopRequest)

    @property
    def launched(self) -> float:
        """When this launch began, in seconds since 1970."""
        return launch_started(self.launch)
