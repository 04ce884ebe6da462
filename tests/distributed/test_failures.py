"""What a rank does when another fails."""

import time

import pytest

from ddp_ft.errors import UserError
from tests.support.ranks import run_ranks


def rank_1_stays_away(world):
    if world.rank == 1:
        time.sleep(30)
    world.barrier()


def test_a_rank_that_does_not_come_is_given_up(monkeypatch):
    """The process group has the stated timeout, here 0.05 minutes."""
    begin = time.monotonic()
    with pytest.raises(RuntimeError):
        run_ranks(2, rank_1_stays_away, timeout=60, timeout_minutes=0.05)
    assert time.monotonic() - begin < 25


def only_main_fails(world):
    def work():
        raise UserError("no such folder", "look again")

    try:
        world.from_main(work)
    except UserError as error:
        return str(error)
    return "went on"


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_mistake_found_by_rank_0_reaches_all(world_size):
    assert run_ranks(world_size, only_main_fails) == ["no such folder\nlook again"] * world_size


def claim(world):
    from ddp_ft.distributed.world import claim_failure

    world.barrier()
    return claim_failure(world.rank)


@pytest.mark.parametrize("world_size", [2, 3])
def test_one_rank_alone_may_tell(world_size):
    assert sum(run_ranks(world_size, claim)) == 1
