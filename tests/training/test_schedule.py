"""Cadence and learning rate as functions of the step."""

import json
import math
import warnings
from dataclasses import asdict

import pytest

from ddp_ft.config.schema import SCHEDULES
from ddp_ft.errors import UserError
from ddp_ft.training.schedule import Cadence, Plateau, Schedule, is_due

EPOCHS_100 = {"steps_per_epoch": 100, "milestones": (5.0,)}


@pytest.mark.parametrize("name", SCHEDULES)
def test_warm_up_rises_to_the_peak(name):
    schedule = Schedule(name, 100, warmup_steps=10, **EPOCHS_100)
    factors = [schedule.factor(step) for step in range(11)]
    assert factors == sorted(factors)
    assert 0 < factors[0] < factors[9] < factors[10] == 1.0


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 1, 20])
def test_the_factor_stays_between_0_and_1_whatever_the_lengths(name, warmup):
    for total in (1, 2, 20):
        schedule = Schedule(name, total, min(warmup, total), steps_per_epoch=3, milestones=(1.0, 2.5))
        assert all(0 <= schedule.factor(step) <= 1 for step in range(total + 1))


@pytest.mark.parametrize("name", ["cosine", "linear", "polynomial", "onecycle", "step", "multistep"])
def test_the_rate_never_rises_again_and_ends_at_the_final_factor(name):
    schedule = Schedule(name, 60, 6, final_factor=0.02, steps_per_epoch=5, milestones=(3.0, 6.0, 9.0))
    factors = [schedule.factor(step) for step in range(6, 61)]
    assert factors == sorted(factors, reverse=True)
    assert factors[-1] == pytest.approx(0.02)


def test_cosine_halves_in_the_middle_and_ends_at_the_final_factor():
    assert Schedule("cosine", 100).factor(50) == pytest.approx(0.5)
    assert Schedule("cosine", 100, final_factor=0.1).factor(100) == pytest.approx(0.1)


def test_linear_falls_in_equal_steps():
    assert [Schedule("linear", 4).factor(s) for s in range(5)] == [1, 0.75, 0.5, 0.25, 0]


@pytest.mark.parametrize("name", ["constant", "plateau"])
def test_constant_stays(name):
    assert {Schedule(name, 10).factor(s) for s in range(10)} == {1.0}


def torch_rates(make_scheduler, steps):
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make_scheduler(optimizer, torch.optim.lr_scheduler)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("schedule", "make_scheduler"),
    [
        (Schedule("step", 30, steps_per_epoch=5, every_epochs=2, gamma=0.3), lambda o, s: s.StepLR(o, 10, 0.3)),
        (
            Schedule("multistep", 30, steps_per_epoch=5, milestones=(1.0, 4.4), gamma=0.5),
            lambda o, s: s.MultiStepLR(o, [5, 22], 0.5),
        ),
        (Schedule("polynomial", 30, power=3.0), lambda o, s: s.PolynomialLR(o, 30, power=3.0)),
        (Schedule("cosine", 30, final_factor=0.1), lambda o, s: s.CosineAnnealingLR(o, 30, eta_min=0.1)),
        (
            # torch counts the last step of each phase, this schedule the first one behind it
            Schedule("onecycle", 30, 9, final_factor=0.01),
            lambda o, s: s.OneCycleLR(
                o, 1.0, total_steps=31, pct_start=10 / 31, div_factor=25, final_div_factor=4, cycle_momentum=False
            ),
        ),
    ],
    ids=lambda value: value.name if isinstance(value, Schedule) else "",
)
def test_shapes_are_those_of_torch(schedule, make_scheduler):
    assert [schedule.factor(step) for step in range(30)] == pytest.approx(torch_rates(make_scheduler, 30))


def test_polynomial_of_power_1_is_linear():
    assert Schedule("polynomial", 8, power=1.0).factor(3) == pytest.approx(Schedule("linear", 8).factor(3))


def test_a_fall_is_due_at_the_epoch_in_spite_of_rounding():
    schedule = Schedule("step", 100, steps_per_epoch=10, every_epochs=0.1, gamma=0.5)
    assert [schedule.factor(step) for step in range(8)] == [0.5**step for step in range(8)]


def test_a_fall_within_the_warm_up_counts_after_it():
    schedule = Schedule("multistep", 20, 10, steps_per_epoch=5, milestones=(1.0,), gamma=0.1)
    assert schedule.factor(9) == pytest.approx(10 / 11)
    assert schedule.factor(10) == pytest.approx(0.1)


@pytest.mark.parametrize("milestones", [None, ()])
def test_multistep_needs_milestones(milestones):
    with pytest.raises(UserError, match=r"schedule\.milestones"):
        Schedule("multistep", 10, milestones=milestones)


@pytest.mark.parametrize("milestones", [(3.0, 2.0), (1.0, 1.0)])
def test_milestones_must_rise(milestones):
    with pytest.raises(UserError, match="larger than the one before"):
        Schedule("multistep", 10, milestones=milestones)


def test_milestones_of_another_schedule_do_not_matter():
    assert Schedule("cosine", 10, milestones=(3.0, 2.0)).factor(0) == 1.0


VALUES = [0.5, 0.6, 0.6, 0.55, 0.61, 0.3, 0.3, 0.3, 0.3, 0.62, 0.1, 0.1, 0.1]


@pytest.mark.parametrize("patience", [0, 1, 2])
@pytest.mark.parametrize("higher", [True, False])
def test_plateau_falls_as_torch_does(patience, higher):
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, "max" if higher else "min", factor=0.5, patience=patience, threshold=0, threshold_mode="abs", eps=0
    )
    state = Plateau()
    for value in VALUES if higher else [-value for value in VALUES]:
        reference.step(value)
        state = state.after(value, higher, patience, 0.5)
        assert state.factor == optimizer.param_groups[0]["lr"]
    assert state.factor < 1


def test_plateau_goes_on_from_json():
    def play(state, values):
        for value in values:
            state = state.after(value, True, 1, 0.1)
        return state

    stored = json.dumps(asdict(play(Plateau(), VALUES[:6])))
    assert play(Plateau(**json.loads(stored)), VALUES[6:]) == play(Plateau(), VALUES)


def test_plateau_takes_nan_for_no_better():
    state = Plateau().after(math.nan, True, 1, 0.1)
    assert state == Plateau(1.0, None, 1)
    assert state.after(0.1, True, 1, 0.1) == Plateau(1.0, 0.1, 0)
    assert Plateau(1.0, 0.1, 1).after(math.nan, False, 1, 0.1).factor == pytest.approx(0.1)


def test_plateau_stops_at_the_final_factor():
    state = Plateau(best=1.0)
    for _ in range(5):
        state = state.after(0.0, True, 0, 0.1, final_factor=0.02)
    assert state.factor == 0.02


@pytest.mark.parametrize(
    ("step", "every", "last", "due"),
    [(0, 5, 20, False), (5, 5, 20, True), (6, 5, 20, False), (20, 7, 20, True), (7, 0, 20, False), (20, 0, 20, True)],
)
def test_is_due(step, every, last, due):
    assert is_due(step, every, last) is due


def due(what, last=21):
    return [step for step in range(1, last + 1) if what(step)]


def test_the_cadence_of_training_has_rows_evaluations_and_checkpoints_at_steps_of_their_own():
    cadence = Cadence(last=21, row_every=8, evaluation_every=10, checkpoint_every=7, epoch=5)
    assert due(cadence.row) == [8, 16, 21]
    assert due(cadence.evaluation) == [10, 20, 21]
    assert due(cadence.checkpoint) == [5, 7, 10, 14, 15, 20, 21]
    assert due(cadence.reads_weights) == [5, 7, 8, 10, 14, 15, 16, 20, 21]
    assert [cadence.next_checkpoint(step) for step in (0, 5, 6, 7, 20)] == [5, 7, 7, 10, 21]


def test_a_phase_without_epochs_is_evaluated_at_its_end_and_saved_when_that_is_asked_for():
    cadence = Cadence(last=21, row_every=100, evaluation_every=0, checkpoint_every=0)
    assert (due(cadence.row), due(cadence.evaluation), due(cadence.checkpoint)) == ([21], [21], [])
    assert due(cadence.reads_weights) == [21] and cadence.next_checkpoint(3) == 21
    assert due(Cadence(21, 100, 0, checkpoint_every=8).checkpoint) == [8, 16]
