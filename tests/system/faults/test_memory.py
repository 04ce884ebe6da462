"""A process that runs out of memory: all take smaller micro-batches, and the step is done again."""

import shutil

import pytest
import torch

from ddp_ft.data.rng import seed_masks
from ddp_ft.data.sampler import GlobalOrderSampler
from ddp_ft.distributed.agreement import Agreement
from ddp_ft.distributed.ddp import Trainee, replicate
from ddp_ft.distributed.world import World
from ddp_ft.errors import UserError
from ddp_ft.evaluation.evaluator import Scorer
from ddp_ft.models.libraries.base import call_with_images
from ddp_ft.training import build
from tests.support.ranks import run_ranks
from tests.support.runs import arguments, column, read, train_here, train_on
from tests.system.faults import exhausted
from tests.system.faults.comparing import curve
from tests.system.faults.poisoned import SEEDS_OF
from tests.system.faults.test_replay import numbers, replay
from tests.training.test_step import make_learner, micro_batches

SLOW = pytest.mark.slow
# Passes of the last rank in micro-batches of 3: 3, 3, 3 and 1 images, or 3, 3, 3, 3 and 1.
BATCH = {1: 10, 2: 20, 3: 40}
CASES = [(number, forward) for number in (0, 1, 3) for forward in (True, False)]


def first_steps(world, case, precision):
    """Two steps in micro-batches of 2, all they leave behind. In a `case` there was one of 3 first, in which the last
    rank was out of memory in the pass of that number; forwards or backwards."""
    place = exhausted.Exhausted(0, *case, steps=range(1)) if case else torch.nn.Identity()
    module, learner = make_learner(world, lambda: exhausted.net(place), 1.0, "adamw", precision)
    learner.scaler = torch.amp.GradScaler("cpu", init_scale=16.0, enabled=precision == "fp16")
    learner.scaler.scale(torch.zeros(1))  # makes its state, for the comparison
    assert world.store is None or len(learner.replica.sums._buffers) == 2, "no reduction has a middle"
    sampler = GlobalOrderSampler(40, BATCH[world.size], world.size, world.rank, seed=3)
    for step, most in [(0, 3), (0, 2), (1, 2)] if case else [(0, 2), (1, 2)]:
        seed_masks(SEEDS_OF[step][world.rank], world.device)
        sums = learner.step(list(micro_batches(sampler.share(step), most)), [1.0])
        assert (float(sums.oom_ranks), bool(sums.is_bad)) == ((1.0, True) if most == 3 else (0.0, False))
        assert float(sums.flags) == world.size
        if most == 3:
            learner.replica = module
            learner.replica = replicate(Trainee(module, call_with_images), world, distributed=world.store is not None)
            learner.begin()
    return {**module.state_dict(), **in_one_mapping(learner.optimizer), **learner.scaler.state_dict()}


def in_one_mapping(optimizer):
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": tensor for number, each in state.items() for name, tensor in each.items()}


def all_cases(world, precision):
    return [first_steps(world, case, precision) for case in (None, *CASES)]


@pytest.mark.parametrize(
    ("world_size", "precision"),
    [(1, "fp32"), (2, "fp32"), (3, "fp32"), pytest.param(2, "fp16", marks=SLOW)],
)
def test_in_any_pass_of_a_step(world_size, precision):
    """The bits are those of the smaller micro-batch from the start, with batch norm and dropout, whether the memory
    ends in the first pass of one rank, a middle one, or the last, within the reduction that the others wait in."""
    for whole, *others in run_ranks(world_size, all_cases, precision):
        for case, other in zip(CASES, others, strict=True):
            assert whole.keys() == other.keys()
            different = [name for name in whole if not same(whole[name], other[name])]
            assert not different, case


def same(one, other):
    return torch.equal(torch.as_tensor(one), torch.as_tensor(other))


def options(net, *more):
    return ["--model", f"{exhausted.THIS_FILE}:{net}", "--lr", 0.01, *more]


def assert_same(run, whole):
    assert curve(run) == curve(whole) and curve(run, "val") == curve(whole, "val")
    for file in ("best/model.safetensors", "checkpoints/last/model.safetensors"):
        assert (run / file).read_bytes() == (whole / file).read_bytes(), file


def test_a_run_has_the_bits_of_the_smaller_micro_batch(shapes, tmp_path):
    """Half of 5 is 2: the micro-batches in memory are cut at other places."""
    run, whole, more = tmp_path / "r", tmp_path / "whole", ("--batch-size", 30, "--ema", 0.9)
    output = train_on(2, shapes, run, *options("at_once", *more, "--micro-batch", 5), epochs=2)
    assert "step 1 did not fit into the memory of 1 process(es). Micro-batches are of 2 images" in " ".join(
        output.split()
    )
    assert (read(run, "plan.json")["lowered"], read(run, "plan.json")["micro_batch"]) == ([5, 2], 5)
    train_on(2, shapes, whole, *options("never", *more, "--micro-batch", 2), epochs=2)
    assert_same(run, whole)


@pytest.fixture(scope="module")
def lowered(shapes, tmp_path_factory):
    """A run of 8 steps in which micro-batches are halved at the sixth, on two processes."""
    run = tmp_path_factory.mktemp("lowered") / "r"
    train_on(2, shapes, run, *options("later", *EACH), epochs=2)
    return run


EACH = ["--set", "checkpoint.every_steps=1", "--set", "checkpoint.keep=99"]


def test_in_mid_run(shapes, tmp_path, lowered):
    """The steps before keep their bits, those behind theirs up to rounding; each is in the curve once."""
    train_on(2, shapes, tmp_path / "r", *options("plain"), epochs=2)
    losses, wanted = column(lowered, "loss"), column(tmp_path / "r", "loss")
    assert column(lowered, "step") == list(range(1, 9))
    assert losses[:5] == wanted[:5] and losses == pytest.approx(wanted, rel=1e-4)
    assert read(lowered, "plan.json")["lowered"] == [4, 2] and read(lowered, "plan.json")["micro_batch"] is None
    assert read(lowered, "summary.json")["bad_steps"] == 0


def test_a_replay_takes_the_smaller_micro_batch(lowered):
    code, output = replay(lowered, 8)
    assert code == 0 and "in epoch 2: 2 shares, micro-batches of 2" in output
    assert numbers(output)[0] == pytest.approx(column(lowered, "loss")[7], rel=1e-4)


@pytest.mark.parametrize("kept", [4, 7])
def test_a_restart_begins_with_the_smaller_micro_batch(shapes, tmp_path, lowered, kept):
    """Behind the lowering it has the bits of the run that went on; before it, the curve."""
    run = go_on_from(kept, lowered, tmp_path / "r")
    output = " ".join(train_on(2, shapes, run, *options("later", *EACH), epochs=2).split())
    assert "did not fit" not in output and "micro-batches are of 2 images, since an earlier start" in output
    assert read(run, "plan.json")["lowered"] == [4, 2]
    assert column(run, "loss") == pytest.approx(column(lowered, "loss"), rel=1e-4)
    if kept == 7:
        assert_same(run, lowered)


def go_on_from(step, run, copy):
    shutil.copytree(run, copy, symlinks=True)
    (copy / "summary.json").unlink()
    for folder in (copy / "checkpoints").glob("step_*"):
        if int(folder.name[5:]) > step:
            shutil.rmtree(folder)
    return copy


def test_elsewhere_a_restart_begins_as_asked_for(shapes, tmp_path, lowered):
    """Another number of processes has other shares, and so room for other micro-batches."""
    run = go_on_from(7, lowered, tmp_path / "r")
    train_here(shapes, run, *options("later", *EACH, "--micro-batch", 2), epochs=2)
    assert read(run, "plan.json")["lowered"] is None


class _Late(Agreement):
    """As on CUDA: the numbers of a step are looked at behind the next one."""

    def __init__(self, *args):
        super().__init__(*args)
        self.late = True


def train_late(args):
    from ddp_ft.train import train

    build.Agreement = _Late
    train.main(args, standalone_mode=False)


@pytest.mark.parametrize("world_size", [pytest.param(1, marks=SLOW), 2, pytest.param(3, marks=SLOW)])
def test_ranks_that_learn_of_it_one_step_later(shapes, tmp_path, world_size):
    """Both steps are done again; weights, statistics and average are those of ranks that learn of it at once."""
    results = []
    for name in ("late", "at_once"):
        run = tmp_path / name
        more = ("--batch-size", 12, "--set", "log.every_steps=99", "--ema", 0.9)
        args = arguments(shapes, run, *options("later", *more), epochs=3)
        if name == "late":
            run_ranks(world_size, train_late, args, connected=False)
        else:
            train_on(world_size, shapes, run, *options("later", *more), epochs=3)
        assert read(run, "plan.json")["lowered"] is not None
        results.append(run)
    assert_same(*results)


def test_when_it_cannot_be_less(shapes, tmp_path):
    with pytest.raises(
        UserError, match=r"1 of 2 process\(es\) ran out of memory in step 1, with 1 image in a forward pass"
    ) as caught:
        train_on(2, shapes, tmp_path / "r", *options("always"))
    assert "--image-size" in caught.value.hint
    with pytest.raises(UserError, match=r"with 2 .* where pairs are mixed"):
        train_here(shapes, tmp_path / "pairs", *options("always", "--mixup", 0.2))
    assert not (tmp_path / "r/summary.json").exists()


def test_rows_have_the_memory_of_the_largest_process(shapes, tmp_path):
    """On a CPU the peak of the whole process; here it is that of the rank which holds 256 MiB more than the others."""
    peaks = {}
    for net in ("plain", "heavy"):
        train_on(2, shapes, tmp_path / net, *options(net))
        peaks[net] = column(tmp_path / net, "memory_process_mib")
    assert peaks["heavy"] == sorted(peaks["heavy"]) and peaks["heavy"][0] > peaks["plain"][-1] + 128


def test_evaluation_in_smaller_parts(shapes, tmp_path):
    """Chunks of 12 images through a net that takes 5, then 3, at once: the metrics of one that takes them all."""
    train_on(2, shapes, tmp_path / "r", *options("in_evaluation"))
    train_on(2, shapes, tmp_path / "whole", *options("plain"))
    for name, value in read(tmp_path / "whole", "summary.json")["val"].items():
        assert read(tmp_path / "r", "summary.json")["val"][name] == pytest.approx(value, abs=1e-5)


def test_evaluation_without_room_for_one():
    module, learner = make_learner(World(0, 1, 0, torch.device("cpu")), exhausted.in_no_evaluation)
    batch = next(micro_batches(GlobalOrderSampler(40, 8, 1, 0, seed=3).share(0), None))
    with pytest.raises(UserError, match="with a single sample"):
        Scorer(module, call_with_images, learner.task, learner.prepare, learner.world, "fp32").predictions(batch)
