"""Short trainings through the command line, in this process or under torchrun."""

import contextlib
import io
import json
import time
from pathlib import Path
from typing import Any

from tests.support import nets
from tests.support.commands import Command
from tests.support.fork_server import PATIENCE
from tests.support.ranks import run_ranks


def arguments(data: Path, run_dir: Path, *more: object, net: str = "plain", epochs: int | None = 1) -> list[str]:
    """Options of a run of about a second: tiny model, 32 pixels, global batch 8. `epochs` None: not given."""
    base = ["--data", data, "--model", f"{nets.THIS_FILE}:{net}", "--weights", "none", "--image-size", 32, "--run-dir"]
    rest = [run_dir, *(["--epochs", epochs] if epochs else []), "--batch-size", 8, "--device", "cpu"]
    # Drawing takes longer than these runs train.
    logging = ["--set", "log.every_steps=1", "--set", "log.pictures=false", "--set", "log.report=false"]
    return [str(argument) for argument in (*base, *rest, *logging, *more)]


def train_here(*args: Any, **options: Any) -> int:
    """Exit code of `ddp_ft.train` run in this process; errors are raised."""
    from ddp_ft.train import train

    return train.main(_without_workers(arguments(*args, **options)), standalone_mode=False) or 0


def train_on(world_size: int, *args: Any, timeout: float = 60, **options: Any) -> str:
    """What rank 0 prints when `ddp_ft.train` runs as that many ranks; quicker than torchrun, and as real."""
    command = ("ddp_ft.train", _without_workers(arguments(*args, **options)))
    return run_ranks(world_size, _run_and_tell, *command, connected=False, timeout=timeout)[0]


def _without_workers(args: list[str]) -> list[str]:
    """With no loader workers, unless their number is given: two more forks for each process, 25 ms each and more."""
    is_given = any(word == "--workers" or word.startswith("data.workers=") for word in args)
    return args if is_given else [*args, "--workers", "0"]


def call_on(world_size: int, module: str, *args: Any) -> str:
    """What rank 0 prints when the command of that module runs as that many ranks."""
    return run_ranks(world_size, _run_and_tell, module, [str(argument) for argument in args], connected=False)[0]


def _run_and_tell(module: str, args: list[str]) -> str:
    import importlib

    command = getattr(importlib.import_module(module), module.rpartition(".")[2])
    with contextlib.redirect_stdout(io.StringIO()) as stream:
        command.main(args, standalone_mode=False)
    return stream.getvalue()


def rows(run_dir: Path, split: str = "train", phase: str = "train") -> list[dict[str, Any]]:
    """The rows of metrics.jsonl of one split and phase."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if (row["split"], row.get("phase", "train")) == (split, phase)]


def column(run_dir: Path, name: str, split: str = "train", phase: str = "train") -> list[Any]:
    """One value of each row."""
    return [row[name] for row in rows(run_dir, split, phase)]


def read(run_dir: Path, name: str) -> Any:
    """A JSON file of the run folder."""
    return json.loads((run_dir / name).read_text())


def start_process(args: list[str]) -> Command:
    """`ddp_ft.train` as a process of its own, to be killed."""
    return Command("ddp_ft.train", args, merged=True)


def wait_for(path: Path, process: Command, seconds: float = PATIENCE) -> None:
    """Until the file is there; fails if the process ends before."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.output()
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.01)
