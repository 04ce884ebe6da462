"""Speed and memory of models of different sizes: `python -m benchmarks.models`.

Each figure is of the real command in a process of its own, on JPEGs of 500 x 375 and with random weights. Models are
measured in turn, each with several micro-batches of the same batch. The table is for docs/choosing.md.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks.contenders import ROOT
from benchmarks.jpegs import ImageSet, write_jpegs
from benchmarks.throughput import CACHE, machine
from ddp_ft.cli.process import run_command
from ddp_ft.errors import UserError

MODELS = (
    "mobilenetv3_large_100", "tf_efficientnet_lite0", "efficientnet_b0", "resnet18", "resnet50", "convnext_tiny",
    "vit_small_patch16_224", "convnext_base", "vit_base_patch16_224",
)  # fmt: skip
BATCH = 32
STEPS = 7  # of which the first 3 do not count
IMAGES = ImageSet(BATCH * STEPS, 20)
PATIENCE = 1800.0  # seconds for one process


@dataclass(frozen=True)
class Figures:
    """Of one training: images per second, and MiB of the process, or of the GPU's tensors on CUDA."""

    model: str
    micro_batch: int
    images_per_second: float
    mebibytes: float
    parameters: str


def measure(model: str, micro_batch: int, data: Path, options: Sequence[str]) -> Figures:
    """Train STEPS steps. UserError if the command fails."""
    with tempfile.TemporaryDirectory(prefix="ddp-ft-models-") as folder:
        run = Path(folder, "run")
        words = ["--data", data, "--model", f"timm/{model}", "--weights", "none", "--recipe", "full", "--run-dir", run]
        words += ["--batch-size", BATCH, "--micro-batch", micro_batch, "--max-steps", STEPS, "--image-size", 224]
        words += ["--epochs", 3]  # given, so that no moving average takes memory
        words += ["--set", "log.report=false", "--set", "log.pictures=false", "--set", "log.every_steps=1", *options]
        command = [sys.executable, "-m", "ddp_ft.train", *map(str, words)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
        if done.returncode:
            raise UserError(f"{model} failed with exit code {done.returncode}: {done.stderr[-1000:]}")
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    memory = max(row.get("memory_allocated_mib", row.get("memory_process_mib", 0.0)) for row in rows)
    size = next(line for line in done.stdout.splitlines() if line.startswith("  model ")).split(": ")[1]
    return Figures(model, micro_batch, summary["images_per_second"], memory, size.partition(", input")[0])


def table(found: Sequence[Figures]) -> str:
    """Markdown, a row for each model; memory and speed for each micro-batch."""
    sizes = sorted({each.micro_batch for each in found})
    titles = [f"images/s, {size} at a time" for size in sizes] + [f"MiB, {size} at a time" for size in sizes]
    lines = [f"| model | size | {' | '.join(titles)} |", "|---" * (2 + len(titles)) + "|"]
    for model in dict.fromkeys(each.model for each in found):
        own = {each.micro_batch: each for each in found if each.model == model}
        speeds = [f"{own[size].images_per_second:.3g}" if size in own else "" for size in sizes]
        memory = [f"{own[size].mebibytes:.0f}" if size in own else "" for size in sizes]
        size = next(iter(own.values())).parameters
        lines.append(f"| `timm/{model}` | {size} | {' | '.join([*speeds, *memory])} |")
    return "\n".join(lines)


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--models", default=",".join(MODELS), help="Names of timm's models, separated by commas.")
@click.option("--micro-batches", default="8,32", show_default=True, help="Images of a forward pass.")
@click.argument("options", nargs=-1)
def models(models: str, micro_batches: str, options: tuple[str, ...]) -> None:
    """Train each model for a few steps; OPTIONS go to every training."""
    data = write_jpegs(CACHE / "jpegs", IMAGES).absolute()
    found: list[Figures] = []
    for model in models.split(","):
        for size in map(int, micro_batches.split(",")):
            found.append(measure(model, size, data, options))
            click.echo(f"{model}, {size} at a time: {found[-1].images_per_second:.3g} images/s", err=True)
    click.echo(f"{machine()}\n\n{table(found)}")


if __name__ == "__main__":
    run_command(models)
