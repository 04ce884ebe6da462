"""Short trainings through the command line, in this process or under torchrun."""

import json
from pathlib import Path
from typing import Any

from tests.support import nets


def arguments(data: Path, run_dir: Path, *more: object, net: str = "plain", epochs: int = 1) -> list[str]:
    """Options of a run of about a second: tiny model, 32 pixels, global batch 8."""
    base = ["--data", data, "--model", f"{nets.THIS_FILE}:{net}", "--weights", "none", "--image-size", 32, "--run-dir"]
    rest = [run_dir, "--epochs", epochs, "--batch-size", 8, "--device", "cpu", "--set", "log.every_steps=1"]
    return [str(argument) for argument in (*base, *rest, *more)]


def train_here(*args: Any, **options: Any) -> int:
    """Exit code of `ddp_ft.train` run in this process; errors are raised."""
    from ddp_ft.train import train

    return train.main(arguments(*args, **options), standalone_mode=False) or 0


def rows(run_dir: Path, split: str = "train") -> list[dict[str, Any]]:
    """The rows of metrics.jsonl of one split."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


def column(run_dir: Path, name: str, split: str = "train") -> list[Any]:
    """One value of each row."""
    return [row[name] for row in rows(run_dir, split)]


def read(run_dir: Path, name: str) -> Any:
    """A JSON file of the run folder."""
    return json.loads((run_dir / name).read_text())
