"""What is asked of a machine, and what follows from its answers; the clock decides nothing here."""

from types import SimpleNamespace

import pytest
import torch

from ddp_ft.config.loading import asks_for_measuring, is_open, make_config
from ddp_ft.data.rng import generators_kept
from ddp_ft.distributed.agreement import Agreement, StopAgreed
from ddp_ft.distributed.stop_request import StopRequest
from ddp_ft.distributed.world import World
from ddp_ft.errors import UserError
from ddp_ft.training.request import Request
from ddp_ft.tuning import timing
from ddp_ft.tuning.memory_limit import largest_that_fits
from ddp_ft.tuning.questions import NEVER, TUNED, Questions
from ddp_ft.tuning.timing import Result, winner
from ddp_ft.tuning.tune import keys_to_measure
from tests.support.finished import PLAN

ALONE = World(0, 1, 0, torch.device("cpu"))


@pytest.mark.parametrize(
    ("ratios", "best"),
    [
        ([(1.02, 1.02)], "rule"),
        ([(1.04, 1.04), (1.2, 1.3)], "b"),
        ([(1.5,)], "rule"),  # one round tells nothing of the spread
        ([(1.5, 0.9)], "rule"),
        ([(1.5, 1.4, 0.9, 1.6, 1.2)], "a"),
        ([(1.5, 0.8, 0.9, 1.6, 1.2), (1.1, 1.1, 1.1, 1.1, 1.1)], "b"),
        ([], "rule"),
    ],
)
def test_only_a_clear_winner_replaces_the_rule(ratios, best):
    rule = Result("rule", 100, (1.0,) * 5)
    assert winner([rule, *(Result(name, 100, each) for name, each in zip("ab", ratios, strict=False))]) == best


def test_ratios_are_taken_within_rounds():
    """The machine is three times as slow in the second round; a is a tenth faster than the rule in each."""
    seconds = iter([1.0, 1 / 1.1, 3.0, 3 / 1.1, *[1.0, 1 / 1.1] * 3])
    results = timing.race(["rule", "a"], lambda name: (8, next(seconds)), ALONE, Agreement(ALONE, StopRequest()), 60)
    assert [(each.name, each.speed) for each in results] == [("rule", 8.0), ("a", pytest.approx(8.8))]
    assert results[1].ratio == pytest.approx(1.1)


def test_speeds_and_ratios_agree():
    """Also if the machine was busy while one of them had its turn: the table has both."""
    seconds = iter([1.0, 1 / 1.1, 1.0, 1 / 1.1, 9.0, 9 / 1.1, 5.0, 1 / 1.1, 5.0, 5 / 1.1])
    results = timing.race(["rule", "a"], lambda name: (8, next(seconds)), ALONE, Agreement(ALONE, StopRequest()), 60)
    assert results[1].speed / results[0].speed == pytest.approx(results[1].ratio)


def test_the_rule_is_measured_even_without_time():
    turns = []

    def turn(name):
        turns.append(name)
        return 1, 1.0

    results = timing.race(["rule", "a", "b"], turn, ALONE, Agreement(ALONE, StopRequest()), seconds=0)
    assert turns == ["rule"] and winner(results) == "rule"


def test_a_request_to_stop_is_seen_before_each_turn():
    stop = StopRequest()

    def turn(name):
        stop.reason = "a test"
        return 1, 1.0

    with pytest.raises(StopAgreed):
        timing.race(["rule", "a"], turn, ALONE, Agreement(ALONE, stop), 60)


@pytest.mark.parametrize(("limit", "most"), [(1000, 64), (64, 64), (63, 64), (13, 256), (3, 100), (1, 7), (0, 7)])
def test_the_largest_that_fits(limit, most):
    asked = []

    def fits(size):
        asked.append(size)
        return size <= limit

    size = largest_that_fits(fits, most)
    assert size == most if limit >= most else max(1, limit - size) <= max(1, size // 8) and size <= max(1, limit)
    assert len(asked) <= 10 and asked[0] == most


AUTO = {"train.micro_batch": "auto"}


def request(tmp_path, *layers, tune=True, **options):
    return Request(tmp_path, layers, tune=tune, **options)


def test_what_was_given_is_not_measured(tmp_path):
    assert keys_to_measure(request(tmp_path)) == [*TUNED]
    given = {"compute.precision": "bf16", "train.micro_batch": "none", "data.workers": 0}
    assert keys_to_measure(request(tmp_path, given)) == ["compute.memory_format", "data.decoder"]
    later = {"compute.precision": "auto", "train.micro_batch": "auto", "data.workers": None}
    assert keys_to_measure(request(tmp_path, given, later)) == [*TUNED]


def test_what_was_measured_is_not_measured_again(tmp_path):
    assert keys_to_measure(request(tmp_path, tuned=dict.fromkeys(TUNED), earlier=PLAN)) == []
    tuned = {"train.micro_batch": None}
    assert keys_to_measure(request(tmp_path, AUTO, tune=False, tuned=tuned, earlier=PLAN)) == []


def test_micro_batch_auto_alone_and_at_any_start(tmp_path):
    assert keys_to_measure(request(tmp_path, AUTO, tune=False, earlier=PLAN)) == ["train.micro_batch"]
    assert keys_to_measure(request(tmp_path, tune=False)) == []
    assert not asks_for_measuring([AUTO, {"train.micro_batch": 4}], "train.micro_batch")


def test_a_run_that_began_without_tuning_is_not_tuned(tmp_path):
    with pytest.raises(UserError, match=r"began without it; compute\.memory_format.*\n.*--run-dir"):
        keys_to_measure(request(tmp_path, earlier=PLAN))


def test_measured_values_fill_only_what_is_open():
    tuned = {"compute.precision": "bf16", "data.workers": 3, "train.micro_batch": 4}
    config = make_config({"data.workers": "1"}, {"compute.precision": "auto"}, tuned=tuned)
    assert (config.compute.precision, config.data.workers, config.train.micro_batch) == ("bf16", 1, 4)
    assert is_open([{"data.workers": 2}, {"data.workers": "auto"}], "data.workers")


def test_generators_are_kept():
    import random

    import numpy as np

    def draws():
        return torch.rand(1).item(), random.random(), np.random.random()

    with generators_kept():
        inside = draws()
    assert draws() == inside


@pytest.mark.parametrize("oom_ranks", [0.0, 1.0])
def test_what_does_not_fit_into_the_memory_is_slow(oom_ranks):
    """From then on a learner computes nothing, so its steps take no time."""
    run = SimpleNamespace(agreement=SimpleNamespace(check=lambda: None))
    sums = SimpleNamespace(oom_ranks=torch.tensor(oom_ranks), odd_ranks=torch.tensor(0.0))
    phase = SimpleNamespace(learner=SimpleNamespace(step=lambda _batch: sums))
    taken = Questions(run, (), 1, {})._steps(phase, iter([[], []]), 2)
    assert (taken >= NEVER) == (oom_ranks > 0)
