"""Every fault at every moment on every number of processes: the same command then ends with an unbroken run's bytes."""

import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.runs import arguments, read
from tests.system.faults.comparing import assert_same_result, assert_whole
from tests.system.faults.fault import Fault
from tests.system.faults.forks import ForkedJob, run_forked

# 8 steps in 2 epochs, checkpoints at 3, 4, 6 and 8.
MOMENTS = {
    "first step": ("train", 1),
    "mid-epoch": ("train", 6),
    "checkpoint": (r"checkpoints/step_\d{8}", 2),
    "evaluation": ("eval", 1),
    "epoch's end": ("/best", 1),
    "last step": (r"/summary\.json", 1),
}
SIGNALS = {"term": signal.SIGTERM, "interrupt": signal.SIGINT}
DAMAGES = ("truncate", "flip", "remove")
ALL, WORLDS = tuple(MOMENTS), (1, 2, 3)
FAULTS: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "kill first": (ALL, WORLDS),
    "kill last": (ALL, (2, 3)),
    "term": (ALL, WORLDS),
    "interrupt": (("first step", "checkpoint", "evaluation"), (1, 2)),
    "raise": (("first step", "mid-epoch", "evaluation"), WORLDS),
    "full": (("first step", "mid-epoch", "checkpoint", "epoch's end"), WORLDS),
    "truncate": (("mid-epoch", "last step"), (1, 3)),
    "flip": (("mid-epoch", "last step"), (1, 2)),
    "remove": (("mid-epoch", "last step"), (1, 2)),
}
CELLS = [
    (fault, moment, world) for fault, (moments, worlds) in FAULTS.items() for moment in moments for world in worlds
]
QUICK = [
    ("kill first", "mid-epoch", 2),
    ("kill last", "evaluation", 3),
    ("term", "epoch's end", 2),
    ("interrupt", "first step", 1),
    ("full", "checkpoint", 2),
    ("truncate", "mid-epoch", 1),
    ("remove", "mid-epoch", 1),
]


def options(data: Path, run: Path) -> list[str]:
    return arguments(data, run, "--set", "checkpoint.every_steps=3", net="with_batch_norm", epochs=2)


@pytest.fixture(scope="module")
def whole(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The run folder of an unbroken run on so many processes."""
    done: dict[int, Path] = {}

    def make(world_size: int) -> Path:
        if world_size not in done:
            run = tmp_path_factory.mktemp("whole") / str(world_size)
            codes, said = run_forked(world_size, options(shapes, run))
            assert codes == [0] * world_size, said
            done[world_size] = run
        return done[world_size]

    return make


def strike(fault: str, moment: str, world_size: int, args: list[str], run: Path) -> None:
    """Start the command, let the fault happen at that moment, and check how the job ends."""
    place, count = MOMENTS[moment]
    kind = fault if fault in ("raise", "full") else "wait"
    planned = Fault(str(run.with_name("fault")), kind, place, count)
    job = ForkedJob(world_size, args, planned.environment())
    job.wait_for(planned.reached)
    if fault in DAMAGES and moment == "mid-epoch":
        job.wait_for(run / "checkpoints/step_00000004")  # written in the background; the one before is sound then
    if fault in SIGNALS:
        job.signal(SIGNALS[fault])
    elif kind == "wait":
        job.signal(signal.SIGKILL, world_size - 1 if fault == "kill last" else 0)
    planned.release()
    codes, said = job.end()
    check_end(fault, moment, codes, said, run)


def check_end(fault: str, moment: str, codes: list[int], said: str, run: Path) -> None:
    if fault in SIGNALS:
        is_over = moment == "last step"
        assert codes == ([75] if len(codes) == 1 and not is_over else [0] * len(codes)), said
        assert read(run, "summary.json")["status"] == ("done" if is_over else "stopped")
        assert "Traceback" not in said
    else:
        assert any(codes), said
        # While another rank is killed, rank 0 may come to the end of what it is writing.
        assert not (run / "summary.json").exists() or (fault, moment) == ("kill last", "last step")
    if fault == "raise":
        assert said.count("RuntimeError: The net fails here.") in (1, 2), said  # the message, and its traceback's end
    assert_whole(run)


def damage(fault: str, run: Path) -> None:
    """Hurt the newest checkpoint as disks and people do."""
    assert len(list((run / "checkpoints").glob("step_*"))) > 1
    newest = max((run / "checkpoints").glob("step_*"))
    file = newest / random.Random(run.name).choice(["model.safetensors", "state.pt"])
    content = bytearray(file.read_bytes())
    if fault == "remove":
        file.unlink()
    elif fault == "truncate":
        file.write_bytes(content[: len(content) // 2])
    elif fault == "flip":
        content[len(content) * 2 // 3] ^= 4
        file.write_bytes(content)


def try_cell(shapes: Path, run: Path, unbroken: Path, fault: str, moment: str, world_size: int) -> None:
    # Loader workers hand on images in files in memory, which then cannot grow either.
    more = ["--workers", "0"] if fault == "full" else []
    strike(fault, moment, world_size, [*options(shapes, run), *more], run)
    if fault in DAMAGES:
        damage(fault, run)
    codes, said = run_forked(world_size, options(shapes, run))
    assert codes == [0] * world_size, said
    assert_same_result(run, unbroken)


@pytest.mark.parametrize(("fault", "moment", "world_size"), QUICK)
def test_some_faults(shapes, tmp_path, whole, fault, moment, world_size):
    try_cell(shapes, tmp_path / "run", whole(world_size), fault, moment, world_size)


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "moment", "world_size"), [cell for cell in CELLS if cell not in QUICK])
def test_all_faults(shapes, tmp_path, whole, fault, moment, world_size):
    try_cell(shapes, tmp_path / "run", whole(world_size), fault, moment, world_size)
