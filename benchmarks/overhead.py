"""What a step costs besides the model: the real command on a net that costs next to nothing, timed part by part.

Each part is a function of ddp_ft or torch that is wrapped from outside. Times are exclusive (without the parts that a
part calls) and CPU time of the main thread, so that other work on the machine counts little; waiting shows in the wall
clock alone. A wrapper costs about a microsecond a call.
"""

import argparse
import contextlib
import importlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

SIDE, CLASSES = 32, 2
WARM_UP = 30  # steps, in which libraries are loaded and memory is taken
STEP = "step: its own lines"
# What the model costs, of any program; the rest is ours.
MODEL = ("forward", "backward", "optimizer")
# Part, where its function lies, name of the function.
PARTS = (
    ("rates", "ddp_ft.training.phase", "set_rates"), ("rates", "ddp_ft.training.phase", "rate_at"),
    ("rates", "ddp_ft.training.phase", "Plateau"),
    ("seeds", "ddp_ft.training.phase", "derive_seed"), ("seeds", "ddp_ft.training.phase", "seed_masks"),
    ("stop request, flags", "ddp_ft.training.run", "Run.wishes"),
    ("agreement", "ddp_ft.distributed.agreement", "Agreement.decide"),
    ("agreement", "ddp_ft.training.step", "StepSums.numbers"),
    ("sum of numbers over ranks", "ddp_ft.distributed.world", "World.sum"),
    (STEP, "ddp_ft.training.step", "Learner.step"), (STEP, "ddp_ft.training.step", "Learner.backward"),
    ("step: modes of modules", "ddp_ft.models.freezing", "TrainingMode.__call__"),
    ("step: copies of statistics", "ddp_ft.training.step", "copy_all"),
    ("step: copies of statistics", "ddp_ft.training.step", "_restore_where"),
    ("step: gradient scaled", "ddp_ft.training.step", "Learner._finish_gradient"),
    ("step: clipping and norm", "ddp_ft.training.step", "clip"),
    ("step: loss", "ddp_ft.tasks.base", "SupervisedTask.loss"),
    ("step: batch to the device", "ddp_ft.data.image.device_transform", "DeviceTransform.__call__"),
    ("forward", "torch.nn.parallel", "DistributedDataParallel.__call__"),
    ("forward", "benchmarks.overhead", "Net.__call__"),
    ("backward", "torch.autograd", "backward"), ("optimizer", "torch.optim", "AdamW.step"),
    ("state and window", "ddp_ft.training.state", "TrainState.advance"),
    ("console", "ddp_ft.trackers.console", "Plain.advance"),
    ("notes and checks after a step", "ddp_ft.training.loop", "take_notes"),
    ("notes and checks after a step", "ddp_ft.training.loop", "check_writes"),
    ("notes and checks after a step", "ddp_ft.training.loop", "_fix_budget"),
    ("notes and checks after a step", "ddp_ft.training.recorder", "Recorder.after_step"),
    ("what is due", "ddp_ft.training.schedule", "is_due"), ("what is due", "ddp_ft.training.loop", "is_stale"),
    ("what is due", "ddp_ft.training.data_phase", "DataPhase.prepare"),
    ("logged rows", "ddp_ft.training.recorder", "Recorder.row"),
    ("evaluation", "ddp_ft.training.loop", "validate"), ("saving", "ddp_ft.training.loop", "save"),
)  # fmt: skip
BESIDE_STEPS = ("evaluation", "saving")


class Net(nn.Module):
    """A linear layer on four pixels behind `LAYERS` tiny ones: a real net has that many tensors."""

    LAYERS = int(os.environ.get("OVERHEAD_LAYERS", "0"))

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for _ in range(self.LAYERS)))
        self.head = nn.Linear(4, num_classes)

    def forward(self, images: Any) -> Any:
        """Logits."""
        return self.head(self.layers(images[:, 0, 0, :4]))


def tiny(num_classes: int = CLASSES) -> nn.Module:
    """The net, for the command line."""
    from benchmarks.overhead import Net  # the command line loads this file under another name

    return Net(num_classes)


class Times:
    """CPU and wall seconds of parts, without the parts inside them, and their calls."""

    def __init__(self, cpu: Callable[[], float] = time.thread_time) -> None:
        self._clock = cpu
        self.cpu: dict[str, float] = defaultdict(float)
        self.wall: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self.is_warm = False
        self._inner = [(0.0, 0.0)]

    @contextlib.contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Around a part."""
        self._inner.append((0.0, 0.0))
        wall, cpu = time.perf_counter(), self._clock()
        try:
            yield
        finally:
            cpu, wall = self._clock() - cpu, time.perf_counter() - wall
            inner_cpu, inner_wall = self._inner.pop()
            self.cpu[part] += cpu - inner_cpu
            self.wall[part] += wall - inner_wall
            self.calls[part] += 1
            outer_cpu, outer_wall = self._inner[-1]
            self._inner[-1] = (outer_cpu + cpu, outer_wall + wall)
            if not self.is_warm and self.calls.get(STEP, 0) >= 2 * WARM_UP:
                self.is_warm = True
                for kind in (self.cpu, self.wall, self.calls):
                    kind.clear()

    def wrap(self, part: str, module: str, path: str) -> None:
        """Time that function from now on."""
        owner = importlib.import_module(module)
        *classes, name = path.split(".")
        for each in classes:
            owner = getattr(owner, each)
        function = getattr(owner, name)
        setattr(owner, name, self._timed(part, function))

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.of(part):
                return function(*args, **kwargs)

        return timed


def inside(arguments: Sequence[str], output: Path) -> None:
    """In a rank: run the command with all parts timed, and write what rank 0 found."""
    times = Times()
    for part in PARTS:
        times.wrap(*part)
    progress = importlib.import_module("ddp_ft.training.progress")
    progress.Stopwatch.waiting = lambda self: times.of("loader: the next batch")
    whole_step = progress.Stopwatch.step

    @contextlib.contextmanager
    def step(self: Any, images: int) -> Iterator[None]:
        with times.of("the loop's own lines, stopwatch"), whole_step(self, images):
            yield

    progress.Stopwatch.step = step
    train = importlib.import_module("ddp_ft.train")
    silence = contextlib.redirect_stdout(io.StringIO())
    with silence:
        train.train.main(list(arguments), standalone_mode=False)
    if os.environ.get("RANK", "0") == "0":
        everything = time.process_time()
        found = {"cpu": times.cpu, "wall": times.wall, "calls": times.calls, "process": everything}
        output.write_text(json.dumps(found))


def make_images(folder: Path, count: int) -> Path:
    """Tiny images in two classes."""
    for role, number in (("train", count), ("val", 8)):
        for k in range(number):
            file = folder / role / f"c{k % CLASSES}" / f"{k}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((SIDE, SIDE, 3), k % 256, np.uint8)).save(file)
    return folder


def measure(world: int, steps: int, layers: int, batch: int) -> dict[str, Any]:
    """Run it in processes of its own; gives what rank 0 found."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, output = make_images(folder / "data", 4 * batch), folder / "times.json"
        options = [
            "--data", data, "--model", f"{__file__}:tiny", "--weights", "none", "--image-size", SIDE, "--device", "cpu",
            "--run-dir", folder / "run", "--batch-size", batch, "--epochs", steps // 4, "--augment", "none",
            "--set", f"eval.every_epochs={steps // 4}", "--set", f"checkpoint.every_steps={10 * steps}", "--workers", 0,
        ]  # fmt: skip
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(world)] if world > 1 else []
        command = [sys.executable, *launcher, "-m", "benchmarks.overhead", "--inside", str(output), "--"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OVERHEAD_LAYERS": str(layers)}
        outcome = subprocess.run(
            [*command, *map(str, options)], env=environment, capture_output=True, text=True, check=False
        )
        if outcome.returncode:
            raise SystemExit(outcome.stdout + outcome.stderr)
        return dict(json.loads(output.read_text()))


def table(found: dict[str, Any]) -> str:
    """Microseconds a step by part."""
    steps = found["calls"][STEP] // 2
    parts = [part for part in dict.fromkeys([*(name for name, *_ in PARTS), *found["cpu"]]) if part in found["cpu"]]
    parts = [part for part in parts if part not in BESIDE_STEPS]
    ours = [part for part in parts if part not in MODEL and not part.startswith("loader")]
    per = {kind: {part: found[kind][part] / steps * 1e6 for part in parts} for kind in ("cpu", "wall")}
    lines = ["| part | CPU us a step | wall us a step |", "|---|---|---|"]
    lines += [f"| {part} | {per['cpu'][part]:.0f} | {per['wall'][part]:.0f} |" for part in parts]
    sums = {"all but the model and the loader": ours, "all": parts}
    for title, those in sums.items():
        cpu, wall = (sum(per[kind][part] for part in those) for kind in ("cpu", "wall"))
        lines.append(f"| **{title}** | **{cpu:.0f}** | **{wall:.0f}** |")
    return "\n".join(lines)


def yardstick(times: int = 5000) -> float:
    """Microseconds of CPU that torch's smallest operation takes now, in a loop of nothing else."""
    value = torch.ones(())
    begin = time.thread_time()
    for _ in range(times):
        value.add(value)
    return (time.thread_time() - begin) / times * 1e6


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--layers", type=int, default=0, help="tiny layers, for their number of tensors")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    given, rest = parser.parse_known_args()
    if given.inside:
        inside([each for each in rest if each != "--"], given.inside)
        return
    for world in given.worlds:
        found = measure(world, given.steps, given.layers, given.batch)
        conditions = f"load {os.getloadavg()[0]:.1f}, an addition of two scalars {yardstick():.1f} us"
        print(f"\nworld {world}, {given.layers} layers, {conditions}\n\n{table(found)}", flush=True)


if __name__ == "__main__":
    main()
