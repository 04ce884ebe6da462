"""metrics.jsonl: one JSON object a line."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddp_ft.contracts import PROBE, TRAIN

Row = dict[str, Any]


def read_rows(file: Path) -> list[Row]:
    """All complete rows of a metrics.jsonl; a last line that a crash cut short is left out."""
    rows = []
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
    for line in lines:
        if line.endswith("\n"):
            rows.append(json.loads(line))
    return rows


class JsonLines:
    """Appends rows {"step", "epoch", "split", metric: value..., "time": seconds since 1970}.

    Rows of the probe phase have "phase": "probe" and count steps of their own. On a restart, rows behind
    `resume_step` of that phase are removed first: those steps will run again. `kept` holds the rest.
    """

    def __init__(self, file: Path, resume_step: int, phase: str = TRAIN) -> None:
        self.kept = [row for row in read_rows(file) if _is_passed(row, resume_step, phase)]
        aside = file.with_name(f".{file.name}.writing")
        aside.write_text("".join(_line(row) for row in self.kept), encoding="utf-8")
        aside.replace(file)
        self._stream = file.open("a", encoding="utf-8", buffering=1)  # whole lines reach the file at once

    def log(self, split: str, step: int, epoch: float, values: Mapping[str, float], phase: str = TRAIN) -> None:
        """Append one row."""
        row = {
            "step": step,
            "epoch": round(epoch, 4),
            "split": split,
            **({"phase": phase} if phase != TRAIN else {}),
            **values,
            "time": round(time.time(), 3),
        }
        self._stream.write(_line(row))

    def finish(self, settings: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Nothing: config.yaml and summary.json hold that."""

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def _is_passed(row: Row, step: int, phase: str) -> bool:
    of = row.get("phase", TRAIN)
    return bool(row["step"] <= step) if of == phase else of == PROBE


def _line(row: Row) -> str:
    # JSON has no NaN and no infinity; strict readers would refuse the whole file.
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(finite) + "\n"
