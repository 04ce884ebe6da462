"""The contenders; and one measurement: `python -m benchmarks.contenders KEY WORKLOAD.json OUTCOME.json`.

Every measurement is a start of its own, alone or under torchrun, with the same number of threads.
"""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.cpu_time import CpuClock
from benchmarks.methods import to_arguments
from benchmarks.workload import WARM_UP_STEPS, Outcome, Workload
from ddp_ft.trackers.jsonl import read_rows

ROOT = Path(__file__).resolve().parent.parent
LIMIT, LIMIT_DDP, OURS = "limit", "limit_ddp", "ours"
THIS = "benchmarks.contenders"


@dataclass(frozen=True)
class Contender:
    """`function` ("module:name") takes the workload and `options`; `needs` is a package that must be installed.

    A `peer` is another tool; of the rest one is ours and the others are limits. `ddp` ones need several processes.
    """

    key: str
    title: str
    function: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    needs: str = "torch"
    peer: bool = True
    ddp: bool = False

    def is_here(self) -> bool:
        """Whether its package is installed."""
        return importlib.util.find_spec(self.needs) is not None


_LIMIT, _LOOPS, _TOOLS = "benchmarks.limit", "benchmarks.by_the_book", "benchmarks.by_tools"
_BEST = {"best": True}
_ALL = (
    Contender(LIMIT, "limit: tensors in memory, processes on their own", f"{_LIMIT}:measure", peer=False),
    Contender(LIMIT_DDP, "limit with DDP", f"{_LIMIT}:measure", {"ddp": True}, peer=False, ddp=True),
    Contender(OURS, "ddp_ft.train", peer=False),
    Contender("torch_best", "plain PyTorch, best flags", f"{_LOOPS}:train", _BEST),
    Contender("torch", "plain PyTorch, by the book", f"{_LOOPS}:train"),
    Contender("timm", "timm's loader, best flags", f"{_LOOPS}:train_with_timm"),
    Contender("lightning_best", "Lightning, best flags", f"{_TOOLS}:with_lightning", _BEST, "lightning"),
    Contender("lightning", "Lightning, by the book", f"{_TOOLS}:with_lightning", needs="lightning"),
    Contender("transformers_best", "HF Trainer, best flags", f"{_TOOLS}:with_transformers", _BEST, "transformers"),
    Contender("transformers", "HF Trainer, by the book", f"{_TOOLS}:with_transformers", needs="transformers"),
    Contender("accelerate_best", "Accelerate, best flags", f"{_TOOLS}:with_accelerate", _BEST, "accelerate"),
    Contender("accelerate", "Accelerate, by the book", f"{_TOOLS}:with_accelerate", needs="accelerate"),
)
CONTENDERS = {each.key: each for each in _ALL}


class MeasurementFailed(Exception):
    """A contender's process failed or took too long; the message is the end of its output."""


def measure(contender: Contender, workload: Workload, timeout: float) -> Outcome:
    """Start the contender's processes, wait for them, and return their results. Raises MeasurementFailed."""
    with tempfile.TemporaryDirectory(prefix="ddp-ft-speed-") as folder:
        if contender.key == OURS:
            outcome, cpu = _measure_ours(workload, Path(folder), timeout)
        else:
            values, cpu = measure_in(THIS, [contender.key], workload, Path(folder), timeout)
            outcome = Outcome(**values)
        seconds = cpu.between(outcome.began, outcome.ended)
        return replace(outcome, cpu_ms_per_image=None if seconds is None else 1000 * seconds / outcome.images)


def measure_in(
    module: str, words: Sequence[str], workload: Workload, folder: Path, timeout: float
) -> tuple[Any, CpuClock]:
    """What `python -m MODULE WORDS WORKLOAD.json OUTCOME.json` writes, on the workload's processes."""
    given, found = folder / "workload.json", folder / "outcome.json"
    workload.write(given)
    cpu = start(module, [*words, str(given), str(found)], workload, timeout)
    return json.loads(found.read_text(encoding="utf-8")), cpu


def start(module: str, words: Sequence[str], workload: Workload, timeout: float) -> CpuClock:
    """`python -m MODULE WORDS`, under torchrun for several processes. Raises MeasurementFailed."""
    launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={workload.processes}", "-m"]
    command = [sys.executable, "-m", *(launcher if workload.processes > 1 else []), module, *words]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(workload.threads),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONWARNINGS": "ignore",
        "TOKENIZERS_PARALLELISM": "false",
    }
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        with CpuClock(process.pid) as cpu:
            said, _ = process.communicate(timeout=timeout)
    except BaseException as error:
        process.terminate()  # torchrun ends its workers; a kill would orphan them
        process.communicate(timeout=60)
        if isinstance(error, subprocess.TimeoutExpired):
            raise MeasurementFailed(f"it took longer than {timeout:.0f} s") from None
        raise
    if process.returncode:
        raise MeasurementFailed(said[-2000:])
    return cpu


def our_settings(workload: Workload) -> dict[str, Any]:
    """The workload as configuration keys of ddp_ft. Evaluated and saved once, at the end, which does not count."""
    return {
        "data.path": workload.data,
        "data.workers": workload.workers,
        "model.name": f"timm/{workload.model}",
        "model.weights": "none",
        "model.image_size": workload.image_size,
        "train.epochs": workload.epochs,
        "train.batch_size": workload.global_batch,
        "recipe": "full",
        "optim.lr": workload.lr,
        "compute.device": workload.device,
        "compute.precision": workload.precision,
        "eval.every_epochs": workload.epochs,
    }


def _measure_ours(workload: Workload, folder: Path, timeout: float) -> tuple[Outcome, CpuClock]:
    run_dir = folder / "run"
    cpu = start("ddp_ft.train", [*to_arguments(our_settings(workload)), "--run-dir", str(run_dir)], workload, timeout)
    summary, plan = (json.loads((run_dir / f"{name}.json").read_text(encoding="utf-8")) for name in ("summary", "plan"))
    if summary["status"] != "done" or summary["step"] != workload.steps:
        raise MeasurementFailed(f"{summary['status']} after {summary['step']} of {workload.steps} steps")
    notes = (
        f"channels_last={plan['channels_last']}, waited for data {100 * summary['data_wait_share']:.1f} % of the time"
    )
    # The moments of the first and last row that is logged; a short run has one alone.
    rows = [row for row in read_rows(run_dir / "metrics.jsonl") if row["split"] == "train"]
    first, last = rows[0], rows[-1]
    images = (last["step"] - first["step"]) * workload.images * workload.epochs // workload.steps
    steps = summary["step"] - WARM_UP_STEPS
    return Outcome(summary["images_per_second"], steps, notes, first["time"], last["time"], images), cpu


def load(name: str) -> Callable[..., Any]:
    """Return the function "module:name"."""
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def write_on_main(value: Any, target: str) -> None:
    """Write it as JSON, on rank 0 only."""
    if int(os.environ.get("RANK", 0)) == 0:
        Path(target).write_text(json.dumps(value), encoding="utf-8")


if __name__ == "__main__":
    _key, _given, _found = sys.argv[1:]
    _contender = CONTENDERS[_key]
    _outcome = load(_contender.function)(Workload.read(Path(_given)), **_contender.options)
    write_on_main(_outcome.to_mapping(), _found)
