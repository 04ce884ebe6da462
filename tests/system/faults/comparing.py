"""What a run folder must hold: at any moment, and at the end compared with that of an unbroken run."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from ddp_ft.run_folder.checkpoints import load_checkpoint
from tests.support.runs import read, rows

TIMING = (
    "time", "images_per_second", "data_wait_share", "save_copy_seconds", "save_stall_seconds", "memory_process_mib",
    "memory_allocated_mib", "memory_reserved_mib", "cpu_load", "gpu_load", "host_memory_share",
)  # fmt: skip


def curve(run: Path, split: str = "train", phase: str = "train") -> list[dict[str, Any]]:
    """The rows without what depends on the clock and the machine."""
    return [{name: v for name, v in row.items() if name not in TIMING} for row in rows(run, split, phase)]


def assert_same_result(run: Path, whole: Path) -> None:
    """A finished run that is equal to an unbroken one, to the byte where it counts."""
    summary, wanted = read(run, "summary.json"), read(whole, "summary.json")
    assert summary["status"] == "done"
    for split, phase in (("train", "train"), ("val", "train"), ("train", "probe"), ("val", "probe")):
        assert curve(run, split, phase) == curve(whole, split, phase), (split, phase)
    for name in ("step", "epoch", "val", "best_step", "best_weights"):
        assert summary[name] == wanted[name], name
    for file in ("best/model.safetensors", "best/model.json", "checkpoints/last/model.safetensors"):
        assert (run / file).read_bytes() == (whole / file).read_bytes(), file


def assert_whole(run: Path) -> None:
    """What holds at any moment, also after a SIGKILL: what has its final name is complete."""
    for folder in [*run.glob("checkpoints/step_*"), *run.glob("checkpoints/probe_*")]:
        load_checkpoint(folder)
    for link in ("last", "best"):
        if (run / "checkpoints" / link).is_symlink():
            assert (run / "checkpoints" / link).is_dir(), f"{link} points at nothing"
    if (run / "best").exists():
        load_file(run / "best/model.safetensors")
    for file in {*run.glob("*.json"), *run.glob("best/model.json")} - {run / "lease.json"}:  # that may be lost
        json.loads(file.read_text(encoding="utf-8"))
