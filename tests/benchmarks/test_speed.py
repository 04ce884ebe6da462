"""The benchmarks of speed: what is measured is what is said, and the arithmetic of the tables."""

import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from benchmarks import by_the_book, jpegs, limit, stages
from benchmarks.contenders import CONTENDERS, LIMIT, LIMIT_DDP, OURS, MeasurementFailed, load, our_settings
from benchmarks.cpu_time import CpuClock
from benchmarks.race import Limits, race
from benchmarks.side_by_side import halves_of, side_by_side
from benchmarks.speed_table import best_peer, ratio, speed_table, stage_table
from benchmarks.startup import Case, cases, time_case
from benchmarks.throughput import choose, throughput
from benchmarks.workload import WARM_UP_STEPS, Clock, Outcome, Workload
from ddp_ft.config.loading import make_config
from ddp_ft.distributed.environment import usable_cores
from ddp_ft.errors import UserError
from ddp_ft.training import progress
from tests.support.ranks import run_ranks

ROOT = Path(__file__).resolve().parents[2]
SMALL = jpegs.ImageSet(20, 10, copies=2, size=(64, 48), size_in_bytes=1500)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return jpegs.write_jpegs(tmp_path_factory.mktemp("jpegs"), SMALL)


@pytest.fixture(scope="module")
def workload(images):
    """Five steps of eight images in one process."""
    return Workload(str(images), 40, "test_resnet", 32, 8, 1, 1, 0, 1, "cpu", "fp32")


# Images


def test_the_set_is_class_folders_of_jpeg_files_with_copies(images):
    files = sorted((images / "train").glob("class_*/*.jpg"))
    assert len(files) == 40 and len(list((images / "val").glob("class_*/*.jpg"))) == 10
    assert len({file.read_bytes() for file in files}) == 20
    with Image.open(files[0]) as image:
        assert (image.format, image.size, image.mode) == ("JPEG", (64, 48), "RGB")
    assert "20 x 2 JPEG files of 64 x 48 in 10 classes" in jpegs.describe(images)


def test_a_set_that_is_there_is_left_alone(images):
    before = (images / "about.json").stat().st_mtime_ns
    assert jpegs.write_jpegs(images.parent, SMALL) == images
    assert (images / "about.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("photos", [(), tuple(jpegs.find_photos())], ids=["generated", "photos"])
def test_images_follow_from_their_number_and_weigh_what_imagenets_do(photos, monkeypatch):
    monkeypatch.setattr(jpegs, "SAMPLES", 5)
    first, again, other = (jpegs.make_image(number, jpegs.SIZE, photos) for number in (3, 3, 18))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    quality = jpegs.choose_quality(jpegs.SIZE, photos, jpegs.BYTES)
    mean = np.mean([len(jpegs.encode(jpegs.make_image(number, jpegs.SIZE, photos), quality)) for number in range(5)])
    assert 0.7 < mean / jpegs.BYTES < 1.4  # the next quality is a third away


# What is timed


def test_the_clock_leaves_out_the_first_steps():
    moments = iter([10.0, 12.0])
    clock = Clock("cpu", now=lambda: next(moments))
    for _ in range(WARM_UP_STEPS + 4):
        clock.tick(16)
    outcome = clock.stop("note")
    assert (outcome.images_per_second, outcome.steps, outcome.notes, outcome.images) == (32.0, 4, "note", 64)
    assert outcome.ended - outcome.began == pytest.approx(2.0, abs=1e-5)
    assert WARM_UP_STEPS == progress.WARM_UP_STEPS


def test_the_clock_refuses_a_run_of_warm_up_alone():
    clock = Clock("cpu")
    for _ in range(WARM_UP_STEPS):
        clock.tick(16)
    with pytest.raises(ValueError, match="3 steps are too few"):
        clock.stop()


def test_all_train_what_ddp_ft_trains_by_default(workload):
    config = make_config(our_settings(workload))
    assert (config.augment.crop_min, config.augment.flip) == (workload.crop_min, workload.flip)
    assert (config.augment.policy, config.augment.color_jitter, config.augment.mixup) == ("none", 0, 0)
    assert (config.loss.label_smoothing, config.optim.name) == (workload.label_smoothing, "adamw")
    assert (config.optim.lr, config.optim.weight_decay) == (workload.lr, workload.weight_decay)
    assert (config.train.batch_size, config.train.epochs) == (workload.global_batch, workload.epochs)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # timm leaves images open
@pytest.mark.parametrize("key", [LIMIT, "torch_best", "torch", "timm"])
def test_contenders_in_one_process(key, workload):
    contender = CONTENDERS[key]
    outcome = load(contender.function)(workload, **contender.options)
    assert outcome.steps == workload.steps - WARM_UP_STEPS and outcome.images_per_second > 0


def rank_of_everything(workload):
    """On each rank: limit with DDP, the plain loop, and the stages."""
    return [limit.measure(workload, ddp=True), by_the_book.train(workload, best=True)], stages.measure(workload, 1)


@pytest.mark.slow
def test_contenders_in_two_processes(workload):
    """A global batch of twice the size, and so half as many steps."""
    pair = replace(workload, processes=2, epochs=2)
    assert (workload.steps, pair.steps) == (5, 6)
    (mine, my_stages), (theirs, _) = run_ranks(2, rank_of_everything, pair, connected=False, timeout=200)
    assert mine[0].images_per_second == theirs[0].images_per_second > 0
    assert [each.steps for each in mine] == [3, 3] and mine[1].images_per_second > 0
    assert "all-reduce" in my_stages


def test_the_stages_are_those_of_a_step(workload):
    found = stages.measure(replace(workload, workers=1), repeats=2)
    names = "decode, transform, collate, loader, transfer and normalise, forward, backward, optimizer, rest of the step"
    assert list(found) == [*names.split(", "), "whole step", "agreement", "logging", "checkpoint copy"]
    parts = ("transfer and normalise", "forward", "backward", "optimizer", "rest of the step")
    assert sum(found[name]["ms"] for name in parts) == pytest.approx(found["whole step"]["ms"])
    assert found["decode"]["per_step"] == pytest.approx(found["decode"]["ms"] * workload.batch)
    assert stage_table(found).count("\n") == len(found) + 1


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not all(CONTENDERS[key].is_here() for key in CONTENDERS), reason="other tools are not installed")
def test_peers_as_processes(workload):
    """Each in one process and in two."""
    keys = [key for key, each in CONTENDERS.items() if each.needs != "torch"]
    for pair in (workload, replace(workload, processes=2, epochs=2)):
        records = race([CONTENDERS[key] for key in keys], pair, 1, Limits(), print)
        assert [each.failure for each in records] == [""] * len(keys)
        assert all(each.outcomes[0].steps == pair.steps - WARM_UP_STEPS for each in records)


def test_cpu_time_is_that_of_the_process_and_its_children():
    """A child of a child counts; waiting does not."""
    spin = "import time; end = time.process_time() + 0.6\nwhile time.process_time() < end: pass"
    script = f"import subprocess, sys, time; subprocess.run([sys.executable, '-c', {spin!r}]); time.sleep(0.5)"
    with subprocess.Popen([sys.executable, "-c", script]) as process:
        began = time.time()
        with CpuClock(process.pid) as cpu:
            process.wait()
    assert 0.5 < cpu.between(began, cpu.times[-1]) < 1.5
    assert cpu.between(began - 9, began - 8) is None and cpu.between(began, time.time() + 1) is None


# Rounds


def run_race(workload, speeds, rounds=2, limits=None, keys=(LIMIT, LIMIT_DDP, OURS, "torch")):
    """A race in which `speeds` ({key: value or exception}) takes the place of measuring; and the order of it."""
    order = []

    def measure(contender, _workload, _timeout):
        order.append(contender.key)
        value = speeds[contender.key]
        if isinstance(value, Exception):
            raise value
        return Outcome(value, 5)

    records = race([CONTENDERS[key] for key in keys], workload, rounds, limits or Limits(), lambda line: None, measure)
    return records, order


def test_rounds_are_interleaved_and_turn(workload):
    records, order = run_race(workload, {LIMIT: 10.0, OURS: 9.0, "torch": 5.0})
    assert order == [LIMIT, OURS, "torch", OURS, "torch", LIMIT]  # one process has no limit with DDP
    assert [len(each.outcomes) for each in records] == [2, 2, 2]
    _, order = run_race(replace(workload, processes=2), {LIMIT: 10.0, LIMIT_DDP: 9.5, OURS: 9.0, "torch": 5.0}, 1)
    assert order == [LIMIT, LIMIT_DDP, OURS, "torch"]


def test_who_fails_is_left_out_and_the_others_go_on(workload):
    speeds = {LIMIT: 10.0, OURS: 9.0, "torch": MeasurementFailed("Traceback\nOSError: no such thing")}
    records, order = run_race(workload, speeds, rounds=3)
    assert order.count("torch") == 1 and order.count(OURS) == 3
    assert "failed: OSError: no such thing" in speed_table(records)


def test_nothing_begins_when_the_time_is_over(workload):
    records, order = run_race(workload, {}, limits=Limits(until=0.0))
    assert order == [] and "no time was left" in speed_table(records)


def test_ratios_are_of_the_same_round(workload):
    """The machine is three times as slow in the second round; the ratios do not see it."""
    records, _ = run_race(workload, {LIMIT: 12.0, OURS: 9.0, "torch": 6.0}, rounds=1)
    for record, speed in zip(records, (4.0, 3.2, 2.0), strict=True):
        record.outcomes[1] = Outcome(speed, 5)
    ours, peer = records[1], best_peer(records)
    assert peer.contender.key == "torch"
    assert ratio(ours, records[0]) == pytest.approx((0.75 + 0.8) / 2)
    assert ratio(ours, peer) == pytest.approx((1.5 + 1.6) / 2)
    row = next(line for line in speed_table(records, ["lightning"]).splitlines() if "ddp_ft.train" in line)
    assert "**6.1 [3.2, 9]** | 0.775 | 1.550 |  |" in row
    assert "Not installed, so not measured: lightning." in speed_table(records, ["lightning"])


def test_the_best_peer_is_no_limit_and_not_ours(workload):
    records, _ = run_race(workload, {LIMIT: 12.0, OURS: 9.0}, keys=(LIMIT, OURS))
    assert best_peer(records) is None and ratio(records[1], None) is None


# Commands


def test_unknown_contenders_are_named():
    with pytest.raises(UserError, match="pytorch"):
        choose("limit,pytorch")
    chosen, _ = choose("torch,limit")
    assert [each.key for each in chosen] == [LIMIT, "torch"]


@pytest.mark.parametrize(("processes", "says"), [("two", "no list of numbers"), ("2", "1 steps")])
def test_mistakes_are_told_before_anything_is_measured(processes, says, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.throughput.CACHE", tmp_path)
    arguments = ["--processes", processes, "--images", "8", "--device", "cpu", "--output", str(tmp_path / "page")]
    with pytest.raises(UserError, match=says):
        throughput.main(arguments, standalone_mode=False)
    assert not (tmp_path / "page.md").exists()


def test_a_command_is_timed_and_a_failing_one_is_told(tmp_path):
    times = time_case(Case("pass", ["-c", "pass"]))
    assert list(times) == ["exit"] and times["exit"] > 0
    with pytest.raises(UserError, match=r"exit code 3: [\s\S]*broken"):
        time_case(Case("broken", ["-c", "print('broken'); raise SystemExit(3)"]))
    assert [case.trains for case in cases(tmp_path)] == [False] * 4 + [True] * 2


@pytest.mark.slow
def test_the_first_step_comes_before_the_exit(images):
    times = time_case(cases(images)[-2])
    assert 0 < times["first step"] < times["exit"]


@pytest.mark.slow
@pytest.mark.timeout(1300)
def test_the_script_for_gpus_runs_the_same_code_on_a_cpu(tmp_path):
    """All of it, the throughput benchmark and the real command among it, with tiny settings."""
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "OUT": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [
        ROOT / "benchmarks/gpu.sh",
        "--device",
        "cpu",
        "--smoke",
        "--minutes",
        "27",
    ]  # a busy machine takes longer
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1250, check=True)
    found = json.loads((tmp_path / "resnet50.json").read_text())["parts"][0]
    assert set(found["contenders"]) == {LIMIT, OURS, "torch_best"}, done.stdout
    assert [each["failure"] for each in found["contenders"].values()] == ["", "", ""]
    assert "whole step" in found["stages"]
    page = (tmp_path / "vit_base_patch16_224.md").read_text()
    assert "test_vit" in page and "| **ddp_ft.train** |" in page


# Side by side


def test_both_have_as_many_cores():
    assert halves_of([0, 1, 2, 3, 5]) == [[0, 1], [2, 3]]
    with pytest.raises(UserError, match="two cores"):
        halves_of([3])


@pytest.mark.slow
@pytest.mark.skipif(usable_cores() < 2, reason="needs two cores")
def test_side_by_side(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    given = ["--rivals", "limit", "--model", "test_resnet", "--image-size", "32", "--batch", "4", "--images", "40"]
    done = CliRunner().invoke(side_by_side, [*given, "--rounds", "1"], standalone_mode=False, catch_exceptions=False)
    ratio = float(re.search(r"\| limit: .* \| ([\d.]+) \|", done.output)[1])
    assert 0 < ratio < 3, done.output
