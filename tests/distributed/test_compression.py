"""Gradients that go from process to process as bf16."""

from contextlib import suppress
from unittest import mock

import pytest
import torch

from ddp_ft.distributed.ddp import BucketSums, Replica, Trainee
from ddp_ft.models.libraries.base import call_with_images
from tests.support import nets
from tests.support.ranks import run_ranks
from tests.support.runs import column, train_on


def reduced(world, wire):
    """Each parameter's own gradient and the sum over ranks."""
    gradients = []
    for wrap in (lambda trainee: trainee, lambda trainee: Replica(trainee, wire)):
        torch.manual_seed(0)
        module = nets.plain()
        pixels = nets.images(4, seed=world.rank).float() / 255
        replica = wrap(Trainee(module, call_with_images))  # which must live through the backward pass
        replica({"image": pixels}).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in module.parameters()])
    return gradients


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_sum_has_eight_bits(world_size):
    """Equal on all ranks, and as near to the sum of the ranks' own gradients as bf16 is."""
    outcomes = run_ranks(world_size, reduced, torch.bfloat16)
    for number, summed in enumerate(outcomes[0][1]):
        assert all(torch.equal(summed, others[1][number]) for others in outcomes)
        assert torch.equal(summed, summed.bfloat16().float())
        exact = torch.stack([own[number] for own, _ in outcomes]).sum(0)
        scale = torch.stack([own[number].abs() for own, _ in outcomes]).sum(0)
        assert ((summed - exact).abs() <= 2**-6 * scale + 1e-12).all() and not torch.equal(summed, exact)


def test_a_run_with_compressed_gradients(shapes, tmp_path):
    """The curve stays near, and its bits are others."""
    for name in ("none", "bf16"):
        more = ("--lr", 0.01, "--optimizer", "sgd", "--set", f"compute.compress_gradients={name}")
        train_on(2, shapes, tmp_path / name, *more, epochs=2)
    losses, exact = column(tmp_path / "bf16", "loss"), column(tmp_path / "none", "loss")
    assert losses == pytest.approx(exact, rel=0.02) and losses != exact


class Bucket:
    """What DDP hands its communication hook."""

    def __init__(self, values):
        self.values = values

    def index(self):
        return 0

    def buffer(self):
        return self.values


def reduced_in_vain(world):
    """One sum of all ranks, and one for which the last rank has no memory: what each has after either."""
    sums, values = BucketSums(torch.bfloat16), torch.ones(4)
    found = [sums.reduce(None, Bucket(values)).wait().tolist()]
    sums.begin()
    if world.rank == world.size - 1:
        no_memory = mock.patch.object(torch.Tensor, "to", side_effect=torch.OutOfMemoryError)
        with no_memory, suppress(torch.OutOfMemoryError):
            sums.reduce(None, Bucket(values))
        sums.join()
        return found
    return [*found, sums.reduce(None, Bucket(values)).wait().tolist()]


def test_no_memory_for_the_compressed_gradients():
    """The rank still joins the sum that it could not begin: else the others would wait for it."""
    assert run_ranks(2, reduced_in_vain, timeout=20) == [[[2.0] * 4, [2.0] * 4], [[2.0] * 4]]
