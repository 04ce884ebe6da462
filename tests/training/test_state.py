"""What a run's state is, and that a snapshot of it is all of it."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ddp_ft.distributed.world import World
from ddp_ft.errors import UserError
from ddp_ft.run_folder.folder import RunFolder
from ddp_ft.training.plan import Plan, read_plan
from ddp_ft.training.progress import Best, Progress
from ddp_ft.training.state import TrainState
from ddp_ft.training.step import StepSums
from tests.support.finished import PLAN

ALONE = World(0, 1, 0, torch.device("cpu"))


def fresh(seed, ema_decay=0.9):
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    plan = replace(PLAN, ema_decay=ema_decay)
    return TrainState(module, torch.optim.AdamW(module.parameters(), lr=0.1), plan, Progress())


def sums(loss, is_bad=False):
    loss, zero = torch.tensor(loss), torch.zeros(())
    return StepSums(loss, torch.tensor(2.0), zero, torch.tensor(is_bad), zero, zero, torch.zeros(4))


def train(state, steps):
    for _ in range(steps):
        state.optimizer.zero_grad()
        state.module(torch.randn(8, 3)).square().sum().backward()
        state.optimizer.step()
        state.advance(sums(3.0))


def parts(state):
    """All of it as text, read past `state_dict`."""
    ema = (state.ema.count, state.ema.tensors) if state.ema else None
    inner = (state.module, state.optimizer, state.scaler)
    return [str(each) for each in (*(each.state_dict() for each in inner), ema, state.window.sums, state.progress)]


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_snapshot_taken_up_is_the_state_it_was_taken_of(ema_decay):
    state = fresh(1, ema_decay)
    train(state, 3)
    state.progress.best, state.progress.stale = Best(2, 0.5, metrics={"loss": 1.0}), 1
    snapshot = state.state_dict(ALONE)
    again = fresh(2, ema_decay)
    again.load_state_dict(snapshot, ALONE)
    again.load_optimizer()
    assert parts(again) == parts(state)
    torch.manual_seed(5)
    train(state, 2)
    torch.manual_seed(5)
    train(again, 2)
    assert parts(again) == parts(state)


def test_a_snapshot_does_not_follow_the_state():
    state = fresh(1)
    train(state, 1)
    snapshot = state.state_dict(ALONE)
    before = str(snapshot)
    train(state, 2)
    assert str(snapshot) == before


def test_a_step_is_counted_and_a_bad_one_moves_no_average():
    state = fresh(1)
    train(state, 1)
    state.score, before = 0.5, str(state.ema.tensors)
    with torch.no_grad():
        state.module[0].weight.add_(1.0)
    state.advance(sums(torch.nan, is_bad=True))
    assert (state.progress.step, state.score, str(state.ema.tensors)) == (2, None, before)
    assert state.window.mean() == 1.5
    state.rewind(2)
    assert state.progress.step == 1


def test_micro_batches_are_lowered_again_and_again_from_the_first_that_did_not_fit():
    state = fresh(1)
    assert (state.micro_batch, state.lowered) == (None, None)
    state.lower(32, 16)
    state.lower(16, 8)
    assert (state.micro_batch, state.lowered) == (8, (32, 8))


def test_training_begins_anew_after_the_probe():
    state = fresh(1)
    state.progress.phase = "probe"
    train(state, 3)
    optimizer = torch.optim.SGD(state.module.parameters(), lr=0.1)
    state.begin_training(optimizer, PLAN)
    assert (state.progress.phase, state.progress.step, state.optimizer) == ("train", 0, optimizer)
    own = state.module.state_dict()
    assert state.ema.count == 0 and all(torch.equal(mean, own[name]) for name, mean in state.ema.tensors.items())


def test_a_plan_is_read_back_as_it_was_written():
    plan = replace(PLAN, lowered=(8, 4), tuned={"data.workers": 1}, measured=[{"what": "workers"}])
    stored = {**plan.to_mapping(), "of a later version": 1, "lowered": [8, 4]}
    assert Plan.from_mapping(stored) == plan
    assert PLAN.after(plan).micro_batch is None and PLAN.after(plan).cut == 4
    assert replace(PLAN, world_size=2).after(plan).cut is None
    assert replace(PLAN, threads=5).changes_from(plan) == ["threads: 1 -> 5"]


@pytest.mark.parametrize("text", ["{", "[]", "null and void", '{"recipe": "full"}'])
def test_a_plan_that_cannot_be_read_is_named(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(UserError, match=r"plan\.json (is no JSON|holds no object|has no .task.)"):
        read_plan(RunFolder(tmp_path))
    assert read_plan(RunFolder(tmp_path / "none")) is None
