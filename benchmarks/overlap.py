"""How much of the reduction of gradients hides behind the backward pass: `python -m benchmarks.overlap`.

Some steps of `ddp_ft.train` are traced by torch's profiler on rank 0. The trace itself, to be opened at
https://ui.perfetto.dev, is written below .cache/overlap/.
"""

import json
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.contenders import measure_in, write_on_main
from benchmarks.jpegs import ImageSet, write_jpegs
from benchmarks.stages import FLAGS, first_micro_batches, open_workload
from benchmarks.throughput import CACHE, Options, machine, make_workload
from benchmarks.workload import Workload
from ddp_ft.cli.process import run_command
from ddp_ft.distributed.device import pick_device
from ddp_ft.distributed.environment import read_launch
from ddp_ft.distributed.world import Machine, connect

STEPS, WARM_UP = 5, 3
PATIENCE = 600.0
PAUSE = 1000.0  # microseconds; within a backward pass there are shorter ones
Span = tuple[float, float]


@click.command()
@click.option("--processes", default=2, show_default=True, type=click.IntRange(2))
@click.option("--model", default="tf_efficientnet_lite0", show_default=True, help="Of timm; with random weights.")
@click.option("--image-size", default=128, show_default=True, type=click.IntRange(16))
@click.option("--batch", default=32, show_default=True, type=click.IntRange(1), help="Images a step of one process.")
@click.option("--worker", nargs=2, hidden=True, help="One of the processes: WORKLOAD.json OUTCOME.json.")
def overlap(processes: int, model: str, image_size: int, batch: int, worker: tuple[str, str] | None) -> None:
    """Trace some steps, and print how much of the reduction ran while gradients were still being computed."""
    if worker is not None:
        write_on_main(traced(Workload.read(Path(worker[0]))), worker[1])
        return
    steps = STEPS + WARM_UP
    images = ImageSet(max(64, batch * processes * steps), 16)
    folder = write_jpegs(CACHE / "jpegs", images)
    options = Options(images, model, image_size, batch, "auto", "auto", 0, 1, 1)
    workload = make_workload(options, folder, processes)
    with tempfile.TemporaryDirectory(prefix="ddp-ft-overlap-") as temporary:
        found, _ = measure_in("benchmarks.overlap", ["--worker"], workload, Path(temporary), PATIENCE)
    click.echo(f"{machine()}\n\n{describe(found)}")


def traced(workload: Workload) -> dict[str, float]:
    """On every process: some steps; on rank 0 what `sums_of` says of them."""
    launch = read_launch()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        world = stack.enter_context(connect(launch, pick_device(workload.device, launch), 10))
        phase, _ = open_workload(workload, folder, Machine(world, launch))
        batches = first_micro_batches(phase)
        for _ in range(WARM_UP):
            phase.learner.step(batches, FLAGS)
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if workload.device == "cuda" else [])]
        with profile(activities=kinds) as profiler:
            for _ in range(STEPS):
                phase.learner.step(batches, FLAGS)
            if workload.device == "cuda":
                torch.cuda.synchronize()
        if not world.is_main:
            return {}
        target = CACHE / "overlap" / f"{workload.model}-{workload.processes}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(target))
        return sums_of(json.loads(target.read_text(encoding="utf-8"))["traceEvents"], STEPS)


def sums_of(events: Iterable[dict[str, Any]], steps: int) -> dict[str, float]:
    """Milliseconds a step: of the backward pass, of reductions that begin within one, and of both at once.

    On CUDA of the kernels; the reduction's own are told by their name, and all others count as computing.
    """
    whole = [event for event in events if event.get("ph") == "X"]
    kernels = [event for event in whole if event.get("cat") == "kernel"]
    if kernels:
        reducing = [_span(event) for event in kernels if "AllReduce" in event["name"]]
        computing = [_span(event) for event in kernels if "nccl" not in event["name"]]
    else:
        reducing = [_span(event) for event in whole if event["name"] == "gloo:all_reduce"]
        computing = [_span(event) for event in whole if event["name"].startswith("autograd::engine::evaluate_function")]
    computing = merged(computing)
    # The small sums of a step come when all is computed.
    passes = merged(computing, PAUSE)
    reducing = merged(span for span in reducing if any(begin <= span[0] < end for begin, end in passes))
    both = [(max(a, c), min(b, d)) for a, b in reducing for c, d in computing if max(a, c) < min(b, d)]
    return {name: _length(spans) / 1000 / steps for name, spans in
            {"computing": computing, "reducing": reducing, "both": both}.items()}  # fmt: skip


def _span(event: dict[str, Any]) -> Span:
    return event["ts"], event["ts"] + event["dur"]


def merged(spans: Iterable[Span], pause: float = 0) -> list[Span]:
    """The same moments in spans that do not meet, in their order, with shorter pauses than that filled."""
    result: list[Span] = []
    for begin, end in sorted(spans):
        if result and begin <= result[-1][1] + pause:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((begin, end))
    return result


def _length(spans: Sequence[Span]) -> float:
    return sum(end - begin for begin, end in spans)


def describe(found: dict[str, float]) -> str:
    """The sums in one line."""
    share = found["both"] / found["reducing"] if found["reducing"] else 1.0
    return (
        f"backward {found['computing']:.1f} ms a step; gradients are being reduced for {found['reducing']:.1f} ms, "
        f"{100 * share:.0f} % of it while others are being computed"
    )


if __name__ == "__main__":
    run_command(overlap)
