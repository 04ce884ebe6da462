"""The support code itself: results by rank, collectives, and how failures of a rank come back."""

import os
import time
import warnings

import pytest
import torch

from ddp_ft.distributed.world import World
from ddp_ft.errors import UserError
from tests.support.ranks import RemoteTraceback, run_ranks

WORLDS = (1, 2, 3)


def collectives(world: World, base: int) -> tuple[float, list[int] | None, str, int]:
    total = world.sum(torch.tensor([float(base + world.rank)])).item()
    world.barrier()
    return total, world.gather(world.rank * 10), world.from_main(lambda: f"from {world.rank}"), world.size


@pytest.mark.parametrize("size", WORLDS)
def test_results_come_by_rank(size: int) -> None:
    results = run_ranks(size, collectives, 5)
    expected = float(sum(5 + rank for rank in range(size)))
    assert [result[0] for result in results] == [expected] * size
    assert [result[1] for result in results] == [[rank * 10 for rank in range(size)]] + [None] * (size - 1)
    assert [result[2:] for result in results] == [("from 0", size)] * size


def mistake_of_rank_0(world: World) -> tuple[int, str, str]:
    def work() -> None:
        assert world.is_main, "only rank 0 works"
        raise UserError("No such folder.", "Make it.")

    try:
        world.from_main(work)
    except UserError as error:
        return world.rank, error.message, error.hint
    raise AssertionError("nothing raised")


@pytest.mark.parametrize("size", WORLDS)
def test_user_error_of_rank_0_is_raised_on_all(size: int) -> None:
    expected = [(rank, "No such folder.", "Make it.") for rank in range(size)]
    assert run_ranks(size, mistake_of_rank_0) == expected


def tensors(world: World) -> dict[str, torch.Tensor]:
    return {"rank": torch.full((3,), world.rank)}


def test_tensors_come_back() -> None:
    results = run_ranks(2, tensors)
    assert [result["rank"].tolist() for result in results] == [[0, 0, 0], [1, 1, 1]]


def fail_on_rank_1(world: World) -> None:
    if world.rank == 1:
        raise KeyError("the cause")
    world.barrier()  # would wait for ever


def test_first_failure_is_raised_with_its_traceback_and_ends_the_others() -> None:
    start = time.monotonic()
    with pytest.raises(KeyError, match="the cause") as caught:
        run_ranks(3, fail_on_rank_1, timeout=30)
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert "rank 1" in str(caught.value.__cause__) and "in fail_on_rank_1" in str(caught.value.__cause__)
    assert time.monotonic() - start < 25


def die_on_rank_1(world: World) -> None:
    if world.rank == 1:
        os._exit(7)
    world.barrier()


def test_a_rank_that_dies_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"Rank 1 ended without an answer, with exit code 7|Connection|closed"):
        run_ranks(2, die_on_rank_1, timeout=30)


def sleep_on_rank_1(world: World) -> None:
    time.sleep(60 * world.rank)


def test_a_rank_that_hangs_is_named() -> None:
    with pytest.raises(TimeoutError, match=r"rank\(s\) \[1\]; rank\(s\) \[0\] ended"):
        run_ranks(2, sleep_on_rank_1, timeout=5)


def warn(world: World) -> None:
    warnings.warn("mind this", UserWarning, stacklevel=1)


def test_a_warning_in_a_rank_is_an_error() -> None:
    with pytest.raises(UserWarning, match="mind this"):
        run_ranks(1, warn)


def variable(world: World) -> str | None:
    return os.environ.get("DDP_FT_PROBE")


def test_ranks_see_the_test_s_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_ranks(1, variable) == [None]
    monkeypatch.setenv("DDP_FT_PROBE", "set")
    assert run_ranks(1, variable) == ["set"]
