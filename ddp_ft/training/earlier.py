"""What an earlier start of a run has left for this one to heed."""

from dataclasses import replace

from ddp_ft.config.keys import LENGTH
from ddp_ft.config.loading import to_flat
from ddp_ft.config.schema import RunConfig
from ddp_ft.contracts import DONE
from ddp_ft.distributed.world import World
from ddp_ft.run_folder.folder import RunFolder, check_same_recipe
from ddp_ft.training.plan import read_plan
from ddp_ft.training.request import Request


def after_earlier(folder: RunFolder, request: Request, world: World) -> Request:
    """The request with the plan of an earlier start, if there was one: what was measured then holds for all.

    Collective.
    """
    earlier = world.from_main(lambda: read_plan(folder))
    if earlier is None:
        return request
    return replace(request, earlier=earlier, tuned=earlier.tuned, measured=earlier.measured)


def is_finished(folder: RunFolder, config: RunConfig, extend: bool) -> bool:
    """Whether the folder's run has ended, at the length that is asked for. UserError if it is of another recipe."""
    stored, summary = folder.stored_config(), folder.read_json("summary.json")
    check_same_recipe(folder, config, extend)
    if stored is None or summary is None:
        return False
    return summary["status"] == DONE and to_flat(stored, [LENGTH]) == to_flat(config, [LENGTH])
