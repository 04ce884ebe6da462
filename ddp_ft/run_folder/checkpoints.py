"""Checkpoints that are complete or absent."""

import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ddp_ft.contracts import PROBE, TRAIN
from ddp_ft.errors import UserError
from ddp_ft.run_folder.files import sync_file, sync_folder, to_json
from ddp_ft.run_folder.model_folder import save_weights

# The phases of a run, oldest first, and what the names of their checkpoints begin with: steps are counted anew in each.
PHASES = {PROBE: "probe_", TRAIN: "step_"}
# Optional files of a checkpoint.
SCORE, EMA = "score.json", "ema.safetensors"
# {file name: {"bytes", "sha256"}} of all others: what a checkpoint is checked against before a run goes on from it.
MANIFEST = "manifest.json"


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
        try:
            _write_files(aside, weights, state, score, ema)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)  # a full disk needs the room
            raise
        self._put(aside, target)
        self._move_links(target, phase)
        self._prune()
        return target

    def _put(self, aside: Path, target: Path) -> None:
        """Rename to the final name; an older one of the same step goes only when the new one is in its place."""
        old = self.root / f".removing_{target.name}"
        if target.exists():
            target.rename(old)
        aside.rename(target)
        sync_file(self.root)
        shutil.rmtree(old, ignore_errors=True)

    def _recover(self) -> None:
        """Bring back a checkpoint that a process was killed while replacing; those it was pruning are older."""
        there = [*self.complete(PROBE), *self.complete()]
        for old in self.root.glob(".removing_*"):
            target = self.root / old.name.removeprefix(".removing_")
            if all(_age(target) > _age(folder) for folder in there) and not damage_of(old):
                old.rename(target)

    def newest_sound(self) -> tuple[Path | None, list[str]]:
        """The newest checkpoint that is as it was written, None if there is none; and what was wrong with newer ones.

        These are set aside, as damaged_step_00000120 and the like. UserError if all there are are damaged.
        """
        self._recover()
        troubles: list[str] = []
        for folder in reversed([*self.complete(PROBE), *self.complete()]):
            trouble = damage_of(folder)
            if not trouble:
                # A process may have been killed between putting it there and what `save` does then.
                self._move_links(folder, PROBE if folder.name.startswith(PHASES[PROBE]) else TRAIN)
                self._prune()
                return folder, troubles
            troubles.append(f"{folder.name}: {trouble}")
            _set_aside(folder)
        if troubles:
            raise UserError(
                f"No checkpoint in {self.root} is whole: {'; '.join(troubles)}.",
                f"They are set aside there as damaged_*. To begin anew remove {self.root.parent}.",
            )
        return None, []

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


def _write_files(
    folder: Path,
    weights: Mapping[str, Tensor],
    state: Mapping[str, Any],
    score: float | None,
    ema: Mapping[str, Tensor] | None,
) -> None:
    save_weights(folder / "model.safetensors", weights)
    if ema is not None:
        save_weights(folder / EMA, ema)
    torch.save(dict(state), folder / "state.pt")
    if score is not None:
        (folder / SCORE).write_text(to_json({"score": score if score > -math.inf else None}), encoding="utf-8")
    manifest = {file.name: _fingerprint(file) for file in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(to_json(manifest), encoding="utf-8")
    sync_folder(folder)


def _fingerprint(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(2**20):
            digest.update(block)
        return {"bytes": stream.tell(), "sha256": digest.hexdigest()}


def damage_of(folder: Path) -> str:
    """What is not as the checkpoint's manifest says, in a few words; empty if all is well."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, expected in manifest.items():
            if (size := (folder / name).stat().st_size) != expected["bytes"]:
                return f"{name} has {size} bytes instead of {expected['bytes']}"
            if _fingerprint(folder / name) != expected:
                return f"{name} has other bytes than were written"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return ""


def _set_aside(folder: Path) -> None:
    target = folder.with_name(f"damaged_{folder.name}")
    shutil.rmtree(target, ignore_errors=True)
    folder.rename(target)


def _age(folder: Path) -> tuple[bool, int]:
    """Grows with time: those of the probe come before all others."""
    return not folder.name.startswith(PHASES[PROBE]), _step_of(folder)


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


def _point(link: Path, target: str) -> None:
    aside = link.with_name(f".{link.name}.writing")
    aside.unlink(missing_ok=True)
    aside.symlink_to(target)
    aside.replace(link)
    sync_file(link.parent)
