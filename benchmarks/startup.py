"""The time until help, the first step and the end of a short run: `python -m benchmarks.startup`.

See benchmarks/README.md. Every figure is of a process of its own; rounds are interleaved. What is printed is also
written below .cache/startup/.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import click

from benchmarks.contenders import ROOT
from benchmarks.jpegs import ImageSet, write_jpegs
from benchmarks.throughput import CACHE, machine
from ddp_ft.cli.process import run_command
from ddp_ft.distributed.environment import usable_cores
from ddp_ft.errors import UserError

TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
IMAGES = ImageSet(80, 20, size=(160, 120), size_in_bytes=8000)
MODEL = ["--model", "timm/test_resnet", "--weights", "none", "--image-size", "64"]
LENGTH = ["--epochs", "1", "--batch-size", "8", "--device", "cpu", "--set", "log.every_steps=1"]
IMPORTS = "import torch, torchvision.transforms.v2, timm, torchmetrics, torch.utils.tensorboard"
PATIENCE = 300.0  # seconds for one process


@dataclass(frozen=True)
class Case:
    """A command, as words behind the interpreter; one that `trains` gets a run folder and is also watched until its
    first step."""

    title: str
    words: Sequence[str]
    trains: bool = False


def cases(data: Path) -> list[Case]:
    """All that is timed: first what no program here can be quicker than."""
    training = ["ddp_ft.train", "--data", str(data), *MODEL, *LENGTH]
    return [
        Case("an empty Python", ["-c", "pass"]),
        Case("`ddp-ft --help`", ["-c", "from ddp_ft.cli.main import main; main()", "--help"]),
        Case("`python -m ddp_ft.train --help`", ["-m", "ddp_ft.train", "--help"]),
        Case("importing torch, torchvision, timm, torchmetrics, tensorboard", ["-c", IMPORTS]),
        Case("`python -m ddp_ft.train`, 1 process", ["-m", *training], trains=True),
        Case("`torchrun -m ddp_ft.train`, 2 processes", ["-m", *TORCHRUN, *training], trains=True),
    ]


def time_case(case: Case) -> dict[str, float]:
    """{what: seconds}: "exit", and "first step" of a training. UserError if the command fails."""
    with tempfile.TemporaryDirectory(prefix="ddp-ft-startup-") as folder:
        run_dir = Path(folder, "run")
        words = [*case.words, *(["--run-dir", str(run_dir)] if case.trains else [])]
        with Path(folder, "said").open("w+", encoding="utf-8") as said:
            began = time.perf_counter()
            process = subprocess.Popen([sys.executable, *words], cwd=ROOT, env=_environment(), stdout=said, stderr=said)
            try:
                first = _wait_for_a_row(run_dir / "metrics.jsonl", process) - began if case.trains else 0.0
                code = process.wait(PATIENCE)
                ended = time.perf_counter() - began
            except BaseException:
                process.terminate()
                process.wait(60)
                raise
            if code:
                said.seek(0)
                raise UserError(f"{case.title} failed with exit code {code}: {said.read()[-1000:]}")
    return {"first step": first, "exit": ended} if case.trains else {"exit": ended}


def _environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(max(1, usable_cores() // 2))}


def _wait_for_a_row(file: Path, process: "subprocess.Popen[bytes]") -> float:
    """The moment at which the file has a line, or at which the process has ended."""
    while process.poll() is None and not (file.exists() and file.stat().st_size):
        time.sleep(0.005)
    return time.perf_counter()


def measure(chosen: Sequence[Case], repeats: int, tell: Callable[[str], None]) -> dict[str, list[float]]:
    """{what: seconds of each repetition}; all cases in turn, so that they meet the same machine."""
    found: dict[str, list[float]] = {}
    for number in range(repeats):
        for case in chosen:
            for what, seconds in time_case(case).items():
                found.setdefault(f"{case.title}: to {what}" if case.trains else case.title, []).append(seconds)
            load = os.getloadavg()[0]
            tell(f"round {number + 1}/{repeats}  {case.title}: {time_text(found, case)} s, load {load:.1f}")
    return found


def time_text(found: dict[str, list[float]], case: Case) -> str:
    """The newest figures of a case."""
    return ", ".join(f"{values[-1]:.2f}" for what, values in found.items() if what.startswith(case.title))


def table(found: dict[str, list[float]]) -> str:
    """Markdown, one row for each thing that was waited for."""
    lines = ["| what | seconds: median [least, largest] |", "| --- | --- |"]
    rows = [
        f"| {what} | {median(values):.2f} [{min(values):.2f}, {max(values):.2f}] |" for what, values in found.items()
    ]
    return "\n".join([*lines, *rows])


@click.command()
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(1))
@click.option("--smoke", is_flag=True, help="One round, without torchrun.")
@click.option("--output", type=click.Path(path_type=Path), help="Without its ending.  [default: .cache/startup/TIME]")
def startup(repeats: int, smoke: bool, output: Path | None) -> None:
    """Time help, the first training step, and a run of one epoch on 80 images with a tiny model."""
    chosen = cases(write_jpegs(CACHE / "jpegs", IMAGES).absolute())
    found = measure(chosen[:-1] if smoke else chosen, 1 if smoke else repeats, click.echo)
    target = output or CACHE / "startup" / time.strftime("%Y%m%d-%H%M%S")
    target.parent.mkdir(parents=True, exist_ok=True)
    text = f"{machine()}; {max(1, usable_cores() // 2)} thread(s) a process\n\n{table(found)}\n"
    Path(f"{target}.md").write_text(text, encoding="utf-8")
    Path(f"{target}.json").write_text(json.dumps({"machine": machine(), "seconds": found}, indent=1), encoding="utf-8")
    click.echo(f"\n{text}\nWritten to {target}.md and .json")


if __name__ == "__main__":
    run_command(startup)
