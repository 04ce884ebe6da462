"""torch.compile changes how soon the result comes: what else it changes is rounding."""

import json
import os
import shutil
import signal
import stat
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ddp_ft.data.micro_batches import micro_batch_sizes
from ddp_ft.data.sampler import GlobalOrderSampler
from ddp_ft.distributed.stop_request import CutShort, StopRequest
from ddp_ft.errors import UserError
from ddp_ft.models import build_model
from ddp_ft.models.activation_checkpointing import recompute_blocks
from ddp_ft.models.blocks import repeated_blocks
from ddp_ft.training import compile as compiling
from ddp_ft.training.compile import Times
from tests.support import nets
from tests.support.ranks import run_ranks
from tests.support.runs import arguments, call_on, column, read, train_here, train_on
from tests.system.faults import exhausted
from tests.system.faults.comparing import assert_same_result
from tests.system.faults.fault import Fault
from tests.system.faults.forks import ForkedJob, run_forked

COMPILED, REGIONAL = ["--set", "compute.compile=true"], ["--set", "compute.compile=regional"]
# Compiling takes seconds on a quiet machine, and minutes on a busy one.
PATIENCE = 400.0
pytestmark = pytest.mark.timeout(3 * PATIENCE)
# Steps of 7 and 8 images, and so micro-batches of 3, 2 and 1.
UNEVEN = ["--set", "train.micro_batch=3"]
NEEDS_COMPILER = pytest.mark.skipif(
    not (shutil.which(os.environ.get("CXX", "g++"))), reason="torch.compile needs a C++ compiler, and there is none"
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one test has compiled the others need not."""
    return tmp_path_factory.mktemp("compile_cache")


@pytest.fixture(autouse=True)
def _shared_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(cache))


def graphs() -> int:
    """How many graphs torch has compiled since it was last asked to forget them."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def assert_same_up_to_rounding(run: Path, eager: Path) -> None:
    assert column(run, "loss") == pytest.approx(column(eager, "loss"), rel=1e-4)
    assert column(run, "loss", "val") == pytest.approx(column(eager, "loss", "val"), rel=1e-4)
    found, wanted = (load_file(folder / "checkpoints/last/model.safetensors") for folder in (run, eager))
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


@NEEDS_COMPILER
@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "cuts", "needed"),
    [
        # One compilation serves both blocks and any number of samples; one sample alone takes another.
        (REGIONAL, [], 1),
        (REGIONAL, UNEVEN, 2),
        (COMPILED, UNEVEN, 2),
    ],
)
def test_a_compiled_run_follows_the_eager_one(shapes, tmp_path, capsys, how, cuts, needed):
    """Masks, statistics of batch norm and batches of several sizes included."""
    train_here(shapes, tmp_path / "eager", *cuts, net="with_blocks", epochs=2)
    torch._dynamo.utils.counters.clear()
    capsys.readouterr()
    train_here(shapes, tmp_path / "run", *cuts, *how, net="with_blocks", epochs=2)
    said = capsys.readouterr().out
    assert graphs() == needed
    assert said.count("Compiled in ") == 1 and "compiled\n" in said
    assert_same_up_to_rounding(tmp_path / "run", tmp_path / "eager")
    # Code for any number of samples rounds as eager kernels do here.
    same = column(tmp_path / "run", "loss") == column(tmp_path / "eager", "loss")
    assert cuts or not same, "the compiled code has not run"
    summary = read(tmp_path / "run", "summary.json")
    assert summary["compile_seconds"] > 0 == read(tmp_path / "eager", "summary.json")["compile_seconds"]
    # The model was evaluated without compiled code, and so has the very numbers that it has anywhere.
    found = json.loads(call_on(1, "ddp_ft.evaluate", tmp_path / "run", "--data", shapes))
    assert {name: found[name] for name in summary["val"]} == summary["val"]


@NEEDS_COMPILER
@pytest.mark.slow
@pytest.mark.parametrize("how", [REGIONAL, [*COMPILED, *UNEVEN]])
@pytest.mark.parametrize("world_size", [2, 3])
def test_on_several_ranks(shapes, tmp_path, world_size, how):
    """With shares and micro-batches that are not even."""
    cuts = how[2:]
    train_on(world_size, shapes, tmp_path / "eager", *cuts, net="with_blocks")
    output = train_on(world_size, shapes, tmp_path / "run", *how, net="with_blocks", timeout=PATIENCE)
    assert "Compiled in " in output
    assert_same_up_to_rounding(tmp_path / "run", tmp_path / "eager")


@NEEDS_COMPILER
@pytest.mark.slow
def test_a_rank_without_samples_takes_part(shapes, tmp_path):
    for name, more in (("eager", []), ("run", COMPILED)):
        output = train_on(3, shapes, tmp_path / name, "--batch-size", 4, *more, net="with_blocks", timeout=PATIENCE)
    assert_same_up_to_rounding(tmp_path / "run", tmp_path / "eager")
    assert "Compiled in " in output


@NEEDS_COMPILER
@pytest.mark.slow
def test_a_network_of_several_buckets(shapes, tmp_path):
    """torch cuts what it compiles where one of DDP's buckets ends."""
    for name, more in (("eager", []), ("run", COMPILED)):
        train_on(2, shapes, tmp_path / name, *UNEVEN, *more, net="wide_with_blocks", timeout=PATIENCE)
    assert_same_up_to_rounding(tmp_path / "run", tmp_path / "eager")


@NEEDS_COMPILER
@pytest.mark.slow
@pytest.mark.parametrize("how", [COMPILED, REGIONAL])
def test_with_activations_that_are_computed_again(shapes, tmp_path, how):
    """In a net without dropout: its masks are others than without the compiler."""
    less = ["--set", "compute.recompute=true", "--model", "timm/test_resnet", "--weights", "none", "--image-size", 32]
    for name, more in (("eager", []), ("run", how)):
        output = train_on(2, shapes, tmp_path / name, *less, *more, timeout=PATIENCE)
    assert_same_up_to_rounding(tmp_path / "run", tmp_path / "eager")
    assert "Compiled in " in output


@NEEDS_COMPILER
@pytest.mark.slow
def test_masks_that_are_drawn_again_are_those_of_the_forward_pass():
    """A gradient is that of the loss with the same masks, by finite differences."""
    ((gradient, difference),) = run_ranks(1, _slope_by_gradient_and_by_difference, connected=False, timeout=PATIENCE)
    assert difference == pytest.approx(gradient, rel=1e-6) and gradient != 0


def _slope_by_gradient_and_by_difference() -> tuple[float, float]:
    torch.manual_seed(0)
    module = nets.with_blocks().double().train()
    recompute_blocks(module, "with_blocks")
    module.compile(options=compiling._options())
    images, weight = torch.rand(6, 3, 32, 32, dtype=torch.float64), module[1][0].second.weight
    direction, tiny = torch.randn_like(weight), 1e-6

    def loss(shift: float) -> torch.Tensor:
        with torch.no_grad():
            weight.add_(direction, alpha=shift)
        torch.manual_seed(5)
        return module(images).square().sum()

    loss(0.0).backward()
    assert weight.grad is not None
    return (weight.grad * direction).sum().item(), (loss(tiny) - loss(-2 * tiny)).item() / (2 * tiny)


@NEEDS_COMPILER
@pytest.mark.slow
def test_smaller_micro_batches_after_running_out_of_memory_are_compiled_anew(shapes, tmp_path):
    model = ["--model", f"{exhausted.THIS_FILE}:outside_of_compiling"]
    for name, more in (("eager", []), ("run", COMPILED)):
        output = train_on(
            2, shapes, tmp_path / name, *model, "--batch-size", 16, "--micro-batch", 4, *more, timeout=PATIENCE
        )
    assert output.count("Compiled in ") == 1 and output.count("Compiled again") == 1
    assert read(tmp_path / "run", "plan.json")["lowered"] == [4, 2]
    assert_same_up_to_rounding(tmp_path / "run", tmp_path / "eager")


@NEEDS_COMPILER
@pytest.mark.slow
def test_unfreezing_a_moving_average_and_a_probe(shapes, tmp_path, start):
    """The probe and the features are computed as ever; each stage is compiled, and said, once."""
    weights = ["--weights", start, "--set", "probe.epochs=2", "--ema", 0.9]
    stages = ["--set", "freeze.schedule={0: backbone, 1: none}"]
    for name, more in (("eager", []), ("run", COMPILED)):
        output = train_on(2, shapes, tmp_path / name, *weights, *stages, *more, epochs=2, timeout=PATIENCE)
    assert output.count("Compiled in ") == 1 and output.count("Compiled again") == 1
    assert_same_up_to_rounding(tmp_path / "run", tmp_path / "eager")
    assert column(tmp_path / "run", "loss", phase="probe") == column(tmp_path / "eager", "loss", phase="probe")


@NEEDS_COMPILER
@pytest.mark.slow
@pytest.mark.parametrize(("how", "world_size"), [(REGIONAL, 1), (COMPILED, 2)])
def test_grade_a_with_the_cache_and_without(shapes, tmp_path, monkeypatch, world_size, how):
    """Killed and started again, the run has the bits of an unbroken one; the cache lies in the run folder."""
    often = [*how, "--set", "checkpoint.every_steps=1", "--set", "checkpoint.keep=99"]
    whole = arguments(shapes, tmp_path / "whole", *often, net="with_blocks", epochs=2)
    codes, said = run_forked(world_size, whole, PATIENCE)
    assert codes == [0] * world_size, said
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    run = tmp_path / "cut"
    fault = Fault(str(tmp_path / "fault"), "kill", "step_00000003", 1)
    again = arguments(shapes, run, *often, net="with_blocks", epochs=2)
    job = ForkedJob(world_size, again, fault.environment())
    codes, said = job.end(PATIENCE)
    assert codes[0] == -signal.SIGKILL, said
    assert list(run.glob("compile_cache/*/*"))
    shutil.copytree(run, tmp_path / "bare", symlinks=True)
    shutil.rmtree(tmp_path / "bare/compile_cache")
    for folder in (run, tmp_path / "bare"):
        codes, said = run_forked(world_size, arguments(shapes, folder, *often, net="with_blocks", epochs=2), PATIENCE)
        assert codes == [0] * world_size and "Training: continues after step" in said, said
        assert_same_result(folder, tmp_path / "whole")


@NEEDS_COMPILER
@pytest.mark.slow
def test_weights_of_a_compiled_run_go_into_any_other(shapes, tmp_path):
    """Names carry no mark of the compiler, and a compiled run starts from an eager one's weights as well."""
    train_here(shapes, tmp_path / "first", *COMPILED, net="with_blocks")
    state = load_file(tmp_path / "first/best/model.safetensors")
    assert not [name for name in state if "_orig_mod" in name]
    train_here(shapes, tmp_path / "eager", "--weights", tmp_path / "first", net="with_blocks")
    train_here(shapes, tmp_path / "run", "--weights", tmp_path / "first", *COMPILED, net="with_blocks")
    assert_same_up_to_rounding(tmp_path / "run", tmp_path / "eager")


# What can go wrong


def wrapped_compiler(folder: Path, script: str) -> dict[str, Any]:
    """What starts a job with a compiler that is g++ where it is asked for its version, and else the script."""
    folder.mkdir(exist_ok=True)
    file = folder / "g++"
    real = shutil.which("g++")
    file.write_text(f'#!/bin/sh\nREAL={real}\nHERE={folder}\n[ "$1" = --version ] && exec $REAL --version\n{script}\n')
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    more = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "cache")}
    return {"more": more, "prepare": use_compiler, "values": (str(file),)}


def use_compiler(file: str) -> None:
    """What CXX does, had torch not been imported already where ranks are forked."""
    import torch._inductor.config as inductor

    inductor.cpp.cxx = (None, file)


def test_without_a_compiler_it_says_so_before_anything_is_written(shapes, tmp_path):
    import torch._inductor.config as inductor

    nowhere = {"cpp.cxx": (None, str(tmp_path / "no_compiler"))}  # torch reads CXX at its import
    with inductor.patch(nowhere), pytest.raises(UserError, match=r"compute.compile = true needs a C\+\+ compiler"):
        train_here(shapes, tmp_path / "run", *COMPILED)
    assert not (tmp_path / "run").exists()


@NEEDS_COMPILER
@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_compiler_that_fails_is_one_message(shapes, tmp_path, world_size):
    broken = wrapped_compiler(tmp_path / "broken", "echo 'internal compiler error' >&2; exit 1")
    codes, said = run_forked(world_size, arguments(shapes, tmp_path / "run", *COMPILED), PATIENCE, **broken)
    assert 2 in codes and 0 not in codes, said  # the other rank may have lost the first before it had failed itself
    assert said.count("torch.compile failed on") == 1 and "Traceback" not in said


def test_a_network_without_blocks_has_no_regions(shapes, tmp_path):
    with pytest.raises(UserError, match="no repeated blocks"):
        train_here(shapes, tmp_path / "run", *REGIONAL)


@NEEDS_COMPILER
@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_stop_does_not_wait_for_the_compiler(shapes, tmp_path, world_size):
    """The compiler would take ten minutes; no step is made, and the next start begins at the same place."""
    slow = wrapped_compiler(tmp_path / "slow", "touch $HERE/begun; exec sleep 600")
    run = tmp_path / "run"
    job = ForkedJob(world_size, arguments(shapes, run, *COMPILED, net="with_blocks"), **slow)
    job.wait_for(tmp_path / "slow/begun", PATIENCE)
    time.sleep(0.5)
    job.signal(signal.SIGTERM)
    codes, said = job.end(PATIENCE)
    assert codes == ([75] if world_size == 1 else [0, 0]), said
    summary = read(run, "summary.json")
    assert (summary["status"], summary["step"]) == ("stopped", 0)
    assert not children_of([process.pid for process in job.processes])
    codes, said = run_forked(world_size, arguments(shapes, run, *COMPILED, net="with_blocks"), PATIENCE)
    assert codes == [0] * world_size and read(run, "summary.json")["status"] == "done", said


def children_of(pids: list[int | None]) -> list[str]:
    """What runs with one of these as its process group or parent."""
    fields = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields.append([*file.read_text().rpartition(")")[2].split()[1:3], file.parent.name])
        except OSError:  # it has just ended
            continue
    return [pid for parent, group, pid in fields if {parent, group} & {str(each) for each in pids}]


@NEEDS_COMPILER
@pytest.mark.slow
def test_the_watchdog_takes_no_compilation_for_a_hang(shapes, tmp_path):
    """The compiler takes three times as long as a silent rank is waited for."""
    once = 'mkdir $HERE/begun 2>/dev/null && sleep 24\nexec $REAL "$@"'
    slow = wrapped_compiler(tmp_path / "slow", once)
    patience = ["--set", "compute.silence_seconds=8"]
    codes, said = run_forked(2, arguments(shapes, tmp_path / "run", *COMPILED, *patience), PATIENCE, **slow)
    assert codes == [0, 0], said
    assert (tmp_path / "slow/begun").is_dir() and not (tmp_path / "run/stacks").exists()


@NEEDS_COMPILER
@pytest.mark.slow
def test_a_part_that_torch_gives_up_is_told_of_once(shapes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compiling, "RECOMPILE_LIMIT", 1)
    more = ["--set", "train.micro_batch=1"]
    train_here(shapes, tmp_path / "eager", *more, net="never_the_same")
    train_here(shapes, tmp_path / "run", *more, *COMPILED, net="never_the_same")
    assert capsys.readouterr().out.count("torch no longer compiles") == 1
    assert_same_up_to_rounding(tmp_path / "run", tmp_path / "eager")


# The parts


def test_a_signal_cuts_short_once():
    stop = StopRequest()
    with stop.listening():
        with pytest.raises(CutShort), stop.cutting_short():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        os.kill(os.getpid(), signal.SIGTERM)  # outside of the block it is a flag
        assert stop.asked
        with pytest.raises(CutShort), stop.cutting_short():
            raise AssertionError("nothing begins when a stop was asked for")


@pytest.mark.parametrize(
    ("batch", "world", "micro_batch", "pairs", "sizes"),
    [
        (8, 3, None, False, [[3], [3, 2], [2]]),  # steps of 7 and 8 of 30 samples: shares of 3, 2, 2 and 3, 3, 2
        (8, 3, 2, False, [[2, 1], [2, 1], [2]]),
        (8, 3, None, True, [[4, 2], [2], [3, 2]]),  # shares of 2, 2, 3 and 4, 2, 2: no pair is parted
        (8, 3, 3, True, [[2], [2], [2, 1]]),
        (2, 3, None, False, [[1], [1], [1]]),  # the third rank has nothing but a ghost
        (8, 1, 5, False, [[5, 3, 2]]),
        (8, 1, None, False, [[8, 7]]),
    ],
)
def test_the_sizes_that_are_compiled(batch, world, micro_batch, pairs, sizes):
    samplers = [GlobalOrderSampler(30, batch, world, rank, 0, pairs=pairs) for rank in range(world)]
    assert [micro_batch_sizes(sampler, micro_batch) for sampler in samplers] == sizes


def test_after_how_many_steps_compiling_pays():
    assert compiling.steps_to_pay(Times(41.0, 0.065, 0.052), passes=2) == 1577
    assert compiling.steps_to_pay(Times(41.0, 0.05, 0.06), passes=2) is None


@pytest.mark.parametrize(
    ("name", "count", "first"),
    [
        ("timm/resnet18", 8, "layer1.0"),
        ("timm/vit_tiny_patch16_224", 12, "blocks.0"),
        ("timm/convnext_atto", 12, "stages.0.blocks.0"),
        ("timm/tf_efficientnet_lite0", 15, "blocks.1.0"),
        ("torchvision/mobilenet_v2", 17, "features.1"),
        ("timm/vgg11", 0, ""),
    ],
)
def test_repeated_blocks(name, count, first):
    with torch.device("meta"):
        built = build_model(name, 3, None, "none")
    blocks = repeated_blocks(built.module, built.head)
    assert len(blocks) == count and (blocks or [""])[0] == first


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("how", [COMPILED, REGIONAL])
def test_on_cuda(shapes, tmp_path, monkeypatch, how):
    """In bf16 and channels_last; started again without a cache it has the same bits."""
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    often = [*UNEVEN, "--device", "cuda", "--set", "compute.deterministic=true", "--set", "checkpoint.every_steps=1"]
    model = ["--model", "timm/resnet18", "--set", "checkpoint.keep=99"]
    train_here(shapes, tmp_path / "eager", *often, *model, epochs=2)
    train_here(shapes, tmp_path / "whole", *often, *model, *how, epochs=2)
    assert column(tmp_path / "whole", "loss") == pytest.approx(column(tmp_path / "eager", "loss"), rel=0.05)
    fault = Fault(str(tmp_path / "fault"), "kill", "step_00000003", 1)
    again = arguments(shapes, tmp_path / "cut", *often, *model, *how, epochs=2)
    assert ForkedJob(1, again, fault.environment()).end(300)[0] == [-signal.SIGKILL]
    shutil.rmtree(tmp_path / "cut/compile_cache")
    codes, said = run_forked(1, again)
    assert codes == [0], said
    assert_same_result(tmp_path / "cut", tmp_path / "whole")
