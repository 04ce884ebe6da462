"""Checkpoints that are complete or absent, and the few files that must never be half-written."""

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ddp_ft.contracts import PROBE, TRAIN
from ddp_ft.errors import UserError

# The phases of a run, oldest first, and what the names of their checkpoints begin with: steps are counted anew in each.
PHASES = {PROBE: "probe_", TRAIN: "step_"}
# Optional files of a checkpoint.
SCORE, EMA = "score.json", "ema.safetensors"


class Checkpoints:
    """The folder checkpoints/ of a run: step_00000120/ ..., and the links `last` and `best` to two of them.

    Kept are the `keep` newest and the `keep_best` best of those that have a score. The checkpoints of a probe phase,
    probe_00000040/ ..., are older than all others, and go when the first other one is complete.
    """

    def __init__(self, root: Path, keep: int, keep_best: int = 1) -> None:
        self.root = root
        self.keep = keep
        self.keep_best = keep_best

    def save(
        self,
        step: int,
        weights: Mapping[str, Tensor],
        state: Mapping[str, Any],
        score: float | None = None,
        *,
        ema: Mapping[str, Tensor] | None = None,
        phase: str = TRAIN,
    ) -> Path:
        """Write the checkpoint of `step` aside, make it durable, then rename it and move the links.

        `state` holds plain values and tensors only, so that it loads with weights_only. `score` is what the model's
        evaluation at this step gave, larger being better and NaN worst; None: it was not evaluated. `ema` are the
        averaged weights, where there are any.
        """
        target = self.root / f"{PHASES[phase]}{step:08d}"
        # The same step again, after a stop that came right behind a regular checkpoint: it is the same model.
        score = read_score(target) if score is None else score
        self._sweep()
        aside = self.root / f".writing_{target.name}"
        aside.mkdir(parents=True)
        save_weights(aside / "model.safetensors", weights)
        if ema is not None:
            save_weights(aside / EMA, ema)
        torch.save(dict(state), aside / "state.pt")
        if score is not None:
            (aside / SCORE).write_text(to_json({"score": score if score > -math.inf else None}), encoding="utf-8")
        _sync_folder(aside)
        if target.exists():
            self._remove(target)
        aside.rename(target)
        _sync_file(self.root)
        self._move_links(target, phase)
        self._prune()
        return target

    def latest(self) -> Path | None:
        """The newest complete checkpoint; None if there is none."""
        found = self.complete() or self.complete(PROBE)
        return found[-1] if found else None

    def complete(self, phase: str = TRAIN) -> list[Path]:
        """The complete checkpoints of a phase, oldest first."""
        return sorted(self.root.glob(f"{PHASES[phase]}{'[0-9]' * 8}"), key=_step_of) if self.root.is_dir() else []

    def ranking(self, phase: str = TRAIN) -> list[Path]:
        """The complete checkpoints of a phase that have a score, best first; of equals the older one."""
        scores = {folder: score for folder in self.complete(phase) if (score := read_score(folder)) is not None}
        return sorted(scores, key=lambda folder: (-scores[folder], _step_of(folder)))

    def _move_links(self, newest: Path, phase: str) -> None:
        _point(self.root / "last", newest.name)
        if ranking := self.ranking(phase):
            _point(self.root / "best", ranking[0].name)
        else:  # it may point at a checkpoint of the probe, which is about to go
            (self.root / "best").unlink(missing_ok=True)

    def _prune(self) -> None:
        is_training = bool(self.complete())
        for phase in PHASES:
            spared = [] if is_training and phase == PROBE else self._spared(phase)
            for old in self.complete(phase):
                if old not in spared:
                    self._remove(old)

    def _remove(self, folder: Path) -> None:
        """Out of sight first: a process that is killed halfway leaves no half a checkpoint."""
        shutil.rmtree(folder.rename(self.root / f".removing_{folder.name}"))

    def _sweep(self) -> None:
        """Remove what killed processes have left behind."""
        for pattern in (".writing_*", ".removing_*"):
            for left in self.root.glob(pattern):
                shutil.rmtree(left)

    def _spared(self, phase: str) -> list[Path]:
        return self.complete(phase)[-self.keep :] + self.ranking(phase)[: self.keep_best]


def _step_of(folder: Path) -> int:
    return int(folder.name.rpartition("_")[2])


def read_score(folder: Path) -> float | None:
    """The score of a checkpoint, -inf for NaN (JSON has neither); None if it has none."""
    file = folder / SCORE
    if not file.is_file():
        return None
    score = json.loads(file.read_text(encoding="utf-8"))["score"]
    return -math.inf if score is None else float(score)


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and state as `Checkpoints.save` was given them, on the CPU. UserError if they cannot be read."""
    with _reading(folder):
        state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
        return load_file(folder / "model.safetensors"), state


def checkpoint_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint, on the CPU. UserError if they cannot be read."""
    with _reading(folder):
        return load_file(folder / "model.safetensors")


def load_ema(folder: Path) -> dict[str, Tensor] | None:
    """The averaged weights of a checkpoint, on the CPU; None if it has none. UserError if they cannot be read."""
    with _reading(folder):
        return load_file(folder / EMA) if (folder / EMA).is_file() else None


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"The checkpoint {folder} cannot be read: {reason}", "Remove its folder to go on from the one before it."
        ) from error


@torch.no_grad()
def restore_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy all weights and buffers into the module, by name. UserError if the names are not the module's."""
    # Not load_state_dict: torchvision's mnasnet wants a version there that safetensors cannot store.
    own = module.state_dict()
    if strangers := sorted(own.keys() ^ weights.keys()):
        raise UserError(f"The stored weights are of another model: {', '.join(strangers[:3])} is in one of them only.")
    for name, tensor in own.items():
        tensor.copy_(weights[name])


def save_weights(file: Path, weights: Mapping[str, Tensor]) -> None:
    """Write tensors so that the same values give the same bytes."""
    # safetensors refuses channels_last and shared memory; one metadata key keeps the header's order stable.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
    save_file(plain, file, metadata={"format": "pt"})


def save_model_folder(folder: Path, weights: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Replace `folder` (best/) by one with these weights and model.json; durable on return."""
    aside, old = folder.with_name(f".writing_{folder.name}"), folder.with_name(f".old_{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_weights(aside / "model.safetensors", weights)
    (aside / "model.json").write_text(to_json(description), encoding="utf-8")
    _sync_folder(aside)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    _sync_file(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_text(file: Path, text: str) -> None:
    """Replace a small file as a whole: readers see the old text or the new one."""
    aside = file.with_name(f".{file.name}.writing")
    aside.write_text(text, encoding="utf-8")
    _sync_file(aside)
    aside.replace(file)
    _sync_file(file.parent)


def to_json(value: Any) -> str:
    """JSON for people: indented, one newline at the end."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _point(link: Path, target: str) -> None:
    aside = link.with_name(f".{link.name}.writing")
    aside.unlink(missing_ok=True)
    aside.symlink_to(target)
    aside.replace(link)
    _sync_file(link.parent)


def _sync_folder(folder: Path) -> None:
    for file in folder.iterdir():
        _sync_file(file)
    _sync_file(folder)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
