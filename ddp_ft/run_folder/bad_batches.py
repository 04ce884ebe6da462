"""RUN/bad_batches: records of the steps whose loss or gradient was not finite, for `ddp-ft replay`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ddp_ft.contracts import Address, LabelledSource
from ddp_ft.errors import UserError, one_line, reason_of
from ddp_ft.files import replacing_folder, to_json
from ddp_ft.run_folder.contents import damaged, keys_of, read_content
from ddp_ft.run_folder.model_folder import read_weights, save_weights

FOLDER = "bad_batches"
_DESCRIPTION, _WEIGHTS = "batch.json", "model.safetensors"
# Weights are kept of so many steps: a run that diverged has bad steps without end; the first ones show why.
KEPT_WEIGHTS = 5
# Numbers that need not be finite: JSON has them as texts then.
_FLOATS = ("loss", "grad_norm", "loss_scale")


@dataclass(frozen=True)
class BadBatch:
    """A step and its global batch. `step` is that of metrics.jsonl: 1 for the first one of training.

    `samples` has a mapping for each sample, in the global order (from `describe_samples`). `noise_seeds`: the seeds of
    random masks, one a rank. `loss` is the mean over the batch, `grad_norm` is before clipping; `loss_scale` is 1
    without fp16.
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
    """The samples of `GlobalOrderSampler.global_batch` for batch.json: position, index, path and label of each."""
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


def bad_batch_folder(run_dir: Path, step: int) -> Path:
    """The folder of that step's record: batch.json, and model.safetensors for the first few."""
    return run_dir / FOLDER / f"step_{step:08d}"


def write_bad_batch(run_dir: Path, batch: BadBatch, weights: Mapping[str, Tensor]) -> str:
    """Record a step, with the weights that it began with unless enough are kept; return a line for the log.

    On rank 0. A disk that fails is reported in that line and ends nothing. A step that is repeated after a restart
    replaces its record.
    """
    found = f"loss {_plain(batch.loss)}, gradient norm {_plain(batch.grad_norm)}"
    folder = bad_batch_folder(run_dir, batch.step)
    try:
        with replacing_folder(folder, durable=False) as aside:
            (aside / _DESCRIPTION).write_text(to_json(_plain(asdict(batch))), encoding="utf-8")
            others = [file for file in folder.parent.glob(f"step_*/{_WEIGHTS}") if file.parent != folder]
            if len(others) < KEPT_WEIGHTS:
                save_weights(aside / _WEIGHTS, weights)
    except Exception as error:  # safetensors has errors of its own for a full disk
        return f"Warning: step {batch.step}: {found}; {folder} could not be written: {one_line(error)}"
    return f"Warning: step {batch.step}: {found}; its batch is described in {folder} (ddp-ft replay)."


def read_bad_batch(run_dir: Path, step: int) -> dict[str, Any] | None:
    """batch.json of that step, its floats as floats; None if there is none. UserError if it is damaged."""
    file = bad_batch_folder(run_dir, step) / _DESCRIPTION
    keys = {**keys_of(BadBatch), **dict.fromkeys(_FLOATS, (float, int, str))}
    found = read_content(file, dict, keys)
    if found is None:
        return None
    try:
        return {**found, **{name: float(found[name]) for name in _FLOATS}}
    except ValueError as error:
        raise damaged(file, f"is damaged: {error}") from None


def bad_batch_weights(run_dir: Path, step: int) -> dict[str, Tensor] | None:
    """The weights that the step began with, on the CPU; None if they were not kept. UserError if they are damaged."""
    file = bad_batch_folder(run_dir, step) / _WEIGHTS
    try:
        return read_weights(file)
    except FileNotFoundError:
        return None
    except Exception as error:
        hint = "Remove it: replay then begins with the newest checkpoint before the step."
        raise UserError(f"{file} cannot be read: {reason_of(error)}.", hint) from None


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
