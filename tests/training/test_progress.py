"""Counters and speed."""

from dataclasses import asdict

import pytest
import torch

from ddp_ft.training.progress import Best, LossWindow, Progress, Stopwatch


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_progress_survives_a_checkpoint():
    progress = Progress(step=5, timed_images=10, best=Best(3, 1.5, {"accuracy": 0.5}))
    assert Progress.from_mapping(asdict(progress)) == progress


def test_of_a_checkpoint_of_an_earlier_version_the_best_is_the_top():
    stored = asdict(Progress(best=Best(metrics={"accuracy": 0.5})))
    del stored["top"]
    assert Progress.from_mapping(stored).top == {"accuracy": 0.5}


def test_the_first_three_steps_and_what_lies_between_steps_do_not_count():
    clock, progress = Clock(), Progress()
    watch = Stopwatch(progress, clock=clock)
    for number in range(8):
        if number == 3:  # a run that ends here has a speed all the same
            assert watch.interval_speed() == {} and progress.images_per_second == pytest.approx(16)
        with watch.step(32):
            with watch.waiting():
                clock.now += 0.5
            clock.now += 1.5
        clock.now += 100  # an evaluation
    assert progress.images_per_second == pytest.approx(16)
    assert progress.data_wait_share == pytest.approx(0.25)
    assert progress.wall_seconds == pytest.approx(8 * 2 + 7 * 100)
    assert watch.interval_speed() == {"images_per_second": pytest.approx(16), "data_wait_share": pytest.approx(0.25)}


def test_loss_window_is_a_weighted_mean_that_starts_anew():
    window, good, bad = LossWindow(torch.zeros(2)), torch.tensor(False), torch.tensor(True)
    window.add(torch.tensor(6.0), torch.tensor(2.0), good)
    window.add(torch.tensor(torch.nan), torch.tensor(3.0), bad)
    window.add(torch.tensor(2.0), torch.tensor(2.0), good)
    assert window.mean() == 2.0
    window.add(torch.tensor(5.0), torch.tensor(1.0), good)
    assert window.mean() == 5.0
