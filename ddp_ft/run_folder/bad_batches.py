"""RUN/bad_batches: what there is to know of a step whose loss or gradient was not finite, for `ddp-ft replay`."""

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ddp_ft.contracts import Address, LabelledSource
from ddp_ft.errors import UserError
from ddp_ft.run_folder.files import to_json
from ddp_ft.run_folder.model_folder import save_weights

FOLDER = "bad_batches"
_DESCRIPTION, _WEIGHTS = "batch.json", "model.safetensors"
# A run that diverged has bad steps without end; the first ones tell why.
KEPT_WEIGHTS = 5


@dataclass(frozen=True)
class BadBatch:
    """A step and its global batch. `step` is that of metrics.jsonl: 1 for the first one of training.

    `samples` has a mapping for each sample, in the global order (`describe_samples` makes them). `noise_seeds` are
    those of random masks, one a rank. `loss` is the mean over the batch, `grad_norm` that before clipping, both as
    they came out; `loss_scale` is 1 without fp16.
    """

    step: int
    epoch: float
    samples: Sequence[Mapping[str, Any]]
    seed: int
    noise_seeds: Sequence[int]
    world_size: int
    micro_batch: int | None
    precision: str
    learning_rates: Mapping[str, float]
    loss_scale: float
    loss: float
    grad_norm: float


def describe_samples(source: LabelledSource, addresses: Sequence[Address]) -> list[dict[str, Any]]:
    """What batch.json says of the samples of `GlobalOrderSampler.global_batch`: place, number, path and label."""
    return [
        {
            "position": address.position,
            "index": address.index,
            "path": source.name(address.index),
            "label": source.targets[address.index].tolist(),
        }
        for address in addresses
        if not address.ghost
    ]


class BadBatches:
    """The folder bad_batches/ of a run: step_00000012/batch.json, and model.safetensors for the first few."""

    def __init__(self, run_dir: Path, kept_weights: int = KEPT_WEIGHTS) -> None:
        self.root = run_dir / FOLDER
        self.kept_weights = kept_weights

    def folder(self, step: int) -> Path:
        """Where that step is written."""
        return self.root / f"step_{step:08d}"

    def write(self, batch: BadBatch, weights: Mapping[str, Tensor]) -> str:
        """Write a step down, and with it the weights that it began with unless there are enough; on rank 0.

        Gives one line for the log. A disk that fails is told of there and ends nothing: the record is for later, and
        the run may well go on. A step that comes again, after a restart, replaces its record.
        """
        found = f"loss {_plain(batch.loss)}, gradient norm {_plain(batch.grad_norm)}"
        folder = self.folder(batch.step)
        try:
            self._write(folder, batch, weights)
        except Exception as error:  # safetensors has errors of its own for a full disk
            reason = " ".join(str(error).split()) or type(error).__name__
            return f"Warning: step {batch.step}: {found}; {folder} could not be written: {reason}"
        return f"Warning: step {batch.step}: {found}; its batch is described in {folder} (ddp-ft replay)."

    def _write(self, folder: Path, batch: BadBatch, weights: Mapping[str, Tensor]) -> None:
        aside = self.root / f".writing_{folder.name}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        try:
            # A path may hold bytes that are no UTF-8.
            text = to_json(_plain(asdict(batch))).encode("utf-8", "backslashreplace")
            (aside / _DESCRIPTION).write_bytes(text)
            if len(self._with_weights(but=folder)) < self.kept_weights:
                save_weights(aside / _WEIGHTS, weights)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(aside, folder)  # noqa: PTH105
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise

    def _with_weights(self, but: Path) -> list[Path]:
        return [file for file in self.root.glob(f"step_*/{_WEIGHTS}") if file.parent != but]

    def read(self, step: int) -> dict[str, Any] | None:
        """batch.json of that step, with floats that are not finite again; None if there is none.

        Raises UserError for one that cannot be read.
        """
        file = self.folder(step) / _DESCRIPTION
        if not file.is_file():
            return None
        try:
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return {**found, **{name: float(found[name]) for name in ("loss", "grad_norm", "loss_scale")}}
        except Exception as error:
            raise UserError(f"{file} cannot be read: {' '.join(str(error).split())}") from None

    def weights_file(self, step: int) -> Path | None:
        """The weights that the step began with, if they were kept."""
        file = self.folder(step) / _WEIGHTS
        return file if file.is_file() else None


def _plain(value: Any) -> Any:
    """As strict JSON: floats that are not finite become "nan", "inf" or "-inf", and tensors numbers."""
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value
