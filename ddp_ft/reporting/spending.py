"""Where a run's time went."""

from collections.abc import Mapping
from typing import Any

from ddp_ft.reporting.formats import duration, number_text

# Parts that are too short to be seen have no line of their own.
_LEAST_SHARE = 0.001


def spent_time(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """The parts of the wall time with their shares, and the speed; None where the run has not written them."""
    wall = float(summary.get("wall_seconds") or 0)
    if not wall or "train_seconds" not in summary:
        return None
    trained = float(summary["train_seconds"])
    waited = min(trained, float(summary.get("data_wait_share") or 0) * trained)
    saved = sum(float(summary.get(name) or 0) for name in ("save_copy_seconds", "save_stall_seconds"))
    parts = {
        "training steps": trained - waited,
        "waiting for data": waited,
        "checkpoints": saved,
        "compiling": float(summary.get("compile_seconds") or 0),
    }
    parts["evaluation, probe, first steps and the rest"] = max(0.0, wall - sum(parts.values()))
    rows = [
        {"name": name, "time": duration(seconds), "share": seconds / wall, "percent": f"{seconds / wall * 100:.1f}"}
        for name, seconds in parts.items()
        if seconds / wall >= _LEAST_SHARE
    ]
    speed = float(summary.get("images_per_second") or 0)
    return {"wall": duration(wall), "parts": rows, "speed": number_text(speed)}
