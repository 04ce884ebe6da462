"""Weights & Biases, online or offline by WANDB_MODE; offline also without a login."""

import os
import secrets
import struct
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import wandb
from PIL import Image
from wandb.proto.wandb_internal_pb2 import Record

from ddp_ft.trackers.services.base import Log, Row, Start
from ddp_ft.trackers.services.curves import FOLDERS, points
from ddp_ft.trackers.services.host import read_facts, write_facts
from ddp_ft.version import __version__

PROJECT = "ddp_ft"
# The order of the rows of one step.
PLACES = {"train": 0, "val": 1, "test": 2}
# An offline run's file is a log of records in LevelDB's form: a head, then blocks of pieces with a head each.
HEAD, BLOCK, PIECE = 7, 1 << 15, struct.Struct("<IHB")
WHOLE, LAST = 1, 4


class WeightsAndBiases:
    """One run of Weights & Biases for a run folder, over all its starts.

    W&B takes rows in the order of its own number and refuses one that does not rise. So a row's number follows from its
    phase, step and split, and rows below the next number that W&B expects are not sent again. The axis of curves is the
    step of training.
    """

    def __init__(self, start: Start, log: Log) -> None:
        self._start, self._facts = start, read_facts(start, "wandb")
        run_id = self._facts.get("id") or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
        self._store(id=run_id)
        folder = Path(os.environ.get("WANDB_DIR") or start.run_dir)
        sent = next_number(folder, run_id)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=os.environ.get("WANDB_NAME") or start.run_dir.resolve().name,
            id=run_id,
            resume="allow",
            dir=str(folder),
            mode=_mode(),
            config={**start.recipe, **start.lengths, "ddp_ft.version": __version__},
            allow_val_change=True,
            settings=wandb.Settings(silent=True, console="off"),
        )
        url = None if self._run.offline else self._run.url
        self._store(url=url)
        self._run.define_metric("images/*", step_metric="image_step")
        for prefix in ("", "probe/"):
            for name in FOLDERS:
                self._run.define_metric(f"{prefix}{name}/*", step_metric=f"{prefix}step")
        self._next = max(sent, self._run.step)
        self._probed, self._finished = 0, False
        where = url or f"offline, for wandb sync {folder / 'wandb' / f'offline-run-*-{run_id}'}"
        log(f"Weights & Biases: {where}")
        for row in start.kept:
            self.log(row)

    def _store(self, **facts: Any) -> None:
        self._facts |= facts
        write_facts(self._start, "wandb", self._facts)

    def log(self, row: Row) -> None:
        """As of Service."""
        is_probe = row.get("phase", "train") == "probe"
        step = int(row["step"])
        if is_probe:  # its steps come before those of the training, and are not sent twice either
            self._probed = max(self._probed, step)
        number = (step + (0 if is_probe else self._probed)) * len(PLACES) + PLACES[row["split"]]
        if number >= self._next:
            values = {**dict(points(row)), ("probe/step" if is_probe else "step"): step}
            self._run.log(values, step=number, commit=True)
            self._next = number + 1

    def image(self, tag: str, step: int, png: bytes) -> None:
        """With its own step, since it is drawn later; sent with the next row."""
        shown = self._facts.get("images", {})
        if step > shown.get(tag, -1):
            values = {f"images/{tag}": wandb.Image(Image.open(BytesIO(png))), "image_step": step}
            self._run.log(values, step=self._next, commit=False)
            self._store(images={**shown, tag: step})

    def warn(self, step: int, text: str) -> None:
        """As an alert."""
        self._run.alert(title=f"Step {step}", text=text, level="WARN")

    def finish(self, settings: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """As of Service."""
        self._run.summary.update({f"best/{name}": value for name, value in metrics.items()})
        self._finished = True

    def close(self) -> None:
        """Wait until all is sent, with the way in which the run ended."""
        if not self._finished:
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if self._finished else 1)


def _mode() -> Any:
    """None, for the user's settings; offline without settings and login."""
    return None if os.environ.get("WANDB_MODE") or wandb.login(prompt=False) else "offline"


def next_number(folder: Path, run_id: str) -> int:
    """One more than the highest number in the files of earlier offline starts in that folder; 0 if there are none.

    From these files, because the library writes them late, and a crash of the machine may lose rows.
    """
    files = folder.glob(f"wandb/offline-run-*/run-{run_id}.wandb")
    return max((number + 1 for file in files for number, _ in read_history(file.read_bytes())), default=0)


def read_history(content: bytes) -> Iterator[tuple[int, dict[str, str]]]:
    """(number, values as JSON) of each row in an offline run's file, up to where it was cut off."""
    for record in _records(content):
        parsed = Record.FromString(record)
        if parsed.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): item.value_json for item in parsed.history.item}
            yield int(float(items["_step"])), items


def _records(content: bytes) -> Iterator[bytes]:
    at, record = HEAD, b""
    while at + PIECE.size <= len(content):
        left = BLOCK - at % BLOCK
        if left < PIECE.size:
            at += left
            continue
        _, length, kind = PIECE.unpack_from(content, at)
        at += PIECE.size + length
        if at > len(content) or kind == 0:
            return
        record += content[at - length : at]
        if kind in (WHOLE, LAST):
            yield record
            record = b""
