"""How close training, here and with other tools, comes to the physical limit: `python -m benchmarks.throughput`.

See benchmarks/README.md. What is measured and printed is also written below .cache/throughput/.
"""

import json
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click

from benchmarks.contenders import CONTENDERS, LIMIT, LIMIT_DDP, OURS, Contender, MeasurementFailed, measure_in
from benchmarks.jpegs import ImageSet, write_jpegs
from benchmarks.jpegs import describe as describe_images
from benchmarks.race import Limits, Record, race
from benchmarks.speed_table import describe, speed_table, stage_table
from benchmarks.workload import WARM_UP_STEPS, Workload
from ddp_ft.cli.process import run_command
from ddp_ft.distributed.environment import usable_cores
from ddp_ft.errors import EXIT_FAILED, UserError, nearest

CACHE = Path(".cache")
ALL, QUICK = "all", (LIMIT, LIMIT_DDP, OURS, "torch_best")


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    images: ImageSet
    model: str
    size: int
    batch: int
    precision: str
    device: str
    workers: int | None
    epochs: int
    rounds: int
    threads: int | None = None  # of each process; None: all cores, divided


# One thread, as two of them wait for each other at each small operation when the machine does something else too.
SMOKE = Options(
    ImageSet(40, 10, size=(64, 48), size_in_bytes=1500), "test_resnet", 32, 4, "fp32", "cpu", None, 1, 1, threads=1
)


@click.command()
@click.option("--processes", default="1,2,4", show_default=True, help="Numbers of processes, separated by commas.")
@click.option("--contenders", default=ALL, show_default=True, help=f"Of {', '.join(CONTENDERS)}.")
@click.option("--model", default="tf_efficientnet_lite0", show_default=True, help="Of timm; with random weights.")
@click.option("--image-size", default=128, show_default=True, type=click.IntRange(16))
@click.option("--batch", default=32, show_default=True, type=click.IntRange(1), help="Images a step of one process.")
@click.option("--precision", default="auto", show_default=True, type=click.Choice(["auto", "fp32", "bf16"]))
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--workers", type=click.IntRange(0), help="Loader processes of each process.  [default: ddp_ft's rule]")
@click.option("--images", default=1280, show_default=True, type=click.IntRange(8), help="To train on.")
@click.option("--copies", default=1, show_default=True, type=click.IntRange(1), help="Files of each image.")
@click.option("--epochs", default=1, show_default=True, type=click.IntRange(1))
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--minutes", type=float, help="Begin no measurement that would end later than this.")
@click.option("--stages/--no-stages", default=True, show_default=True, help="Also take ddp_ft's stages one by one.")
@click.option("--smoke", is_flag=True, help="Tiny settings and few contenders, to see that everything runs.")
@click.option(
    "--output", type=click.Path(path_type=Path), help="Without its ending.  [default: .cache/throughput/TIME]"
)
def throughput(
    processes: str, contenders: str, model: str, image_size: int, batch: int, precision: str, device: str,
    workers: int | None, images: int, copies: int, epochs: int, rounds: int, minutes: float | None, stages: bool,
    smoke: bool, output: Path | None,
) -> int:  # fmt: skip
    """Measure the limit, ddp_ft.train and other tools in interleaved rounds, on the same files and model."""
    limits = Limits(time.monotonic() + 60 * minutes) if minutes else Limits()
    options = Options(
        ImageSet(images, max(10, images // 4), copies), model, image_size, batch, precision, device, workers,
        epochs, rounds,
    )  # fmt: skip
    if smoke:
        options, processes = replace(SMOKE, model=_smoke_model(model)), "1"
        contenders = ",".join(QUICK) if contenders == ALL else contenders
    chosen, missing = choose(contenders)
    folder = write_jpegs(CACHE / "jpegs", options.images)
    report = Report(output or CACHE / "throughput" / time.strftime("%Y%m%d-%H%M%S"), folder)
    for count in _numbers(processes):
        workload = make_workload(options, folder, count)
        click.echo(f"\n{describe(workload)}")
        found = _take_stages(workload, limits) if stages else {}
        report.add(workload, race(chosen, workload, options.rounds, limits, click.echo), missing, found)
    click.echo(f"\n{report.text}\n\nWritten to {report.target}.md and .json")
    return EXIT_FAILED if report.failed else 0


def _smoke_model(model: str) -> str:
    """A tiny model of the same kind, where timm has one."""
    kinds = {"vit": "test_vit", "convnext": "test_convnext"}
    return next((tiny for kind, tiny in kinds.items() if model.startswith(kind)), SMOKE.model)


def choose(given: str) -> tuple[list[Contender], list[str]]:
    """The contenders that `given` names and that are installed, and the packages of the others. UserError for an
    unknown one."""
    names = list(CONTENDERS) if given == ALL else [name.strip() for name in given.split(",")]
    for name in names:
        if name not in CONTENDERS:
            hint = nearest(name, list(CONTENDERS)) or f"There are {', '.join(CONTENDERS)}."
            raise UserError(f"There is no contender '{name}'.", hint)
    chosen = [CONTENDERS[name] for name in CONTENDERS if name in names]
    missing = sorted({each.needs for each in chosen if not each.is_here()})
    return [each for each in chosen if each.is_here()], missing


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise UserError(f"--processes {text} is no list of numbers.", "Example: --processes 1,2,4")
    return numbers


def make_workload(options: Options, folder: Path, processes: int) -> Workload:
    """The workload of that many processes on this machine, its device, precision, threads and workers resolved."""
    import torch

    from ddp_ft.data.workers import default_workers
    from ddp_ft.models.precision import resolve_precision

    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    workers = options.workers
    workload = Workload(
        data=str(folder.absolute()),
        images=options.images.train * options.images.copies,
        model=options.model,
        image_size=options.size,
        batch=options.batch,
        processes=processes,
        epochs=options.epochs,
        workers=default_workers(device, processes) if workers is None else workers,
        threads=options.threads or max(1, usable_cores() // processes),
        device=device,
        precision=resolve_precision(options.precision, torch.device(device)),
    )
    if workload.steps < WARM_UP_STEPS + 2:
        raise UserError(
            f"{workload.images} images in batches of {workload.global_batch} are {workload.steps} steps, and the "
            f"first {WARM_UP_STEPS} do not count.",
            "Give more --images, --copies or --epochs, or a smaller --batch.",
        )
    return workload


def _take_stages(workload: Workload, limits: Limits) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="ddp-ft-speed-") as folder:
        try:
            found, _ = measure_in("benchmarks.stages", [], workload, Path(folder), limits.patience())
        except MeasurementFailed as error:
            click.echo(f"The stages could not be taken: {error}", err=True)
            return {"failure": str(error)}
    return dict(found)


class Report:
    """What was found, as text and as JSON; written anew after each number of processes."""

    def __init__(self, target: Path, images: Path) -> None:
        self.target = target
        self.parts: list[dict[str, Any]] = []
        self.failed = False
        self.text = f"{machine()}\n\nImages: {describe_images(images)}."

    def add(
        self, workload: Workload, records: Sequence[Record], missing: Sequence[str], stages: dict[str, Any]
    ) -> None:
        """The measurements of one number of processes."""
        self.failed |= any(each.failure for each in records) or "failure" in stages
        self.text += f"\n\n### {describe(workload)}\n\n{speed_table(records, missing)}"
        if stages and "failure" not in stages:
            self.text += f"\n\nddp_ft stage by stage, one after the other, medians:\n\n{stage_table(stages)}"
        found = {each.contender.key: each.to_mapping() for each in records}
        self.parts.append({"workload": asdict(workload), "contenders": found, "stages": stages})
        self.target.parent.mkdir(parents=True, exist_ok=True)
        values = {"machine": machine(), "time": time.strftime("%Y-%m-%dT%H:%M:%S"), "parts": self.parts}
        Path(f"{self.target}.json").write_text(json.dumps(values, indent=1), encoding="utf-8")
        Path(f"{self.target}.md").write_text(f"{self.text}\n", encoding="utf-8")


def machine() -> str:
    """What it was measured on."""
    import timm
    import torch
    import torchvision

    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}"
    cores = f"{usable_cores()} cores, {names[0] if names else platform.machine()}{gpu}"
    return f"{cores}; {versions}, Python {platform.python_version()}"


if __name__ == "__main__":
    run_command(throughput)
