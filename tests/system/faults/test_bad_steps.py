"""A step whose loss or gradient is not finite changes nothing on any rank, and is told of."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ddp_ft.data.sampler import GlobalOrderSampler
from ddp_ft.distributed.world import World
from ddp_ft.errors import UserError
from tests.support import nets
from tests.support.ranks import run_ranks
from tests.support.runs import column, read, train_here, train_on
from tests.system.faults import poisoned
from tests.training.test_step import make_learner, micro_batches

EACH = ["--set", "checkpoint.every_steps=1", "--set", "checkpoint.keep=99", "--lr", 0.01]


def options(net):
    return ["--model", f"{poisoned.THIS_FILE}:{net}", *EACH]


def state_at(run, step):
    folder = run / f"checkpoints/step_{step:08d}"
    return (folder / "model.safetensors").read_bytes(), torch.load(folder / "state.pt", weights_only=True)


def test_nothing_moves_on_any_rank(shapes, tmp_path):
    """One rank has the NaN; weights, statistics of batch norm, the average and the optimizer's counters stay."""
    run = tmp_path / "r"
    output = train_on(2, shapes, run, *options("once_on_the_last_rank"), "--ema", 0.9, epochs=2)
    (before, state), (after, later) = state_at(run, 3), state_at(run, 4)
    assert before == after and (run / "best/model.safetensors").exists()
    assert state["ema"]["count"] == later["ema"]["count"]
    assert str(state["optimizer"]["state"]) == str(later["optimizer"]["state"])
    assert state_at(run, 5)[0] != after
    assert all(tensor.isfinite().all() for tensor in load_file(run / "checkpoints/last/model.safetensors").values())
    assert column(run, "loss")[3] == 0.0 and all(loss is not None for loss in column(run, "loss"))
    assert read(run, "summary.json")["bad_steps"] == 1 and "Warning: step 4: loss nan" in output
    assert len(read(run, "bad_batches/step_00000004/batch.json")["samples"]) == 8


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_curve_beyond_is_that_of_any_number_of_processes_and_of_a_resume(shapes, tmp_path, world_size):
    run, again = tmp_path / "r", tmp_path / "again"
    train_on(world_size, shapes, run, *options("twice"), epochs=2)
    assert read(run, "summary.json")["bad_steps"] == 2
    if world_size > 1:
        train_here(shapes, tmp_path / "alone", *options("twice"), epochs=2)
        assert column(run, "loss") == pytest.approx(column(tmp_path / "alone", "loss"), rel=1e-4)
    shutil.copytree(run, again, symlinks=True)
    (again / "summary.json").unlink()
    for folder in (again / "checkpoints").glob("step_*"):
        if int(folder.name[5:]) > 4:  # go on between the two bad steps
            shutil.rmtree(folder)
    train_on(world_size, shapes, again, *options("twice"), epochs=2)
    assert state_at(again, 8)[0] == state_at(run, 8)[0] and column(again, "loss") == column(run, "loss")
    assert read(again, "summary.json")["bad_steps"] == 2


def test_a_run_with_nothing_but_bad_steps_ends(shapes, tmp_path):
    with pytest.raises(UserError, match=r"not finite in 4 steps in a row, up to step 6: loss nan") as caught:
        train_here(shapes, tmp_path / "r", *options("always"), "--set", "train.max_bad_steps=3", epochs=9)
    assert f"ddp-ft replay {tmp_path / 'r'} 6" in caught.value.hint
    assert not (tmp_path / "r/summary.json").exists()


def fused_step(world):
    """Whether a bad step is seen and changes nothing, and a good one changes something, where the optimizer looks at
    found_inf by itself."""
    module, learner = make_learner(world, net=nets.with_batch_norm)
    learner.optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)
    share = GlobalOrderSampler(40, 8, world.size, world.rank, seed=3).share(0)
    seen = []
    for poison in (torch.nan, 1.0):
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        batch = list(micro_batches(share, None))
        if world.rank == world.size - 1:
            batch[0]["weight"] *= poison
        is_bad = bool(learner.step(batch).is_bad)
        seen.append((is_bad, all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())))
    return seen


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_fused_optimizer_skips_by_itself(world_size):
    assert run_ranks(world_size, fused_step) == [[(True, True), (False, False)]] * world_size


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("optimizer", ["adamw", "lamb"])
def test_an_infinite_loss_with_a_finite_gradient(precision, optimizer):
    """As that of a logit that overflows to -inf. The scaler of fp16 looks at gradients alone."""
    module, learner = make_learner(World(0, 1, 0, torch.device("cpu")), optimizer=optimizer, precision=precision)
    learner.scaler = torch.amp.GradScaler("cpu", init_scale=16.0, enabled=precision == "fp16")
    lowered = torch.tensor([-torch.inf, 0, 0])
    overflow = module.register_forward_hook(lambda _module, _images, outputs: outputs + lowered)
    batch = list(micro_batches(GlobalOrderSampler(40, 8, 1, 0, seed=3).share(0), None))
    before = nn.utils.parameters_to_vector(module.parameters()).detach()
    sums = learner.step(batch)
    assert bool(sums.is_bad) and float(sums.loss) == torch.inf
    assert torch.equal(nn.utils.parameters_to_vector(module.parameters()), before)
    overflow.remove()
    learner.step(batch)
    assert not torch.equal(nn.utils.parameters_to_vector(module.parameters()), before)
