"""Checkpoints that are complete or absent."""

import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddp_ft.contracts import PROBE, TRAIN, Task
from ddp_ft.errors import UserError, reason_of, typed_line
from ddp_ft.files import add_to_digest, read_sound_json, remove, replacing_folder, to_json
from ddp_ft.run_folder.model_folder import read_weights, save_weights
from ddp_ft.run_folder.pointers import point

# The phases of a run, oldest first, and the prefixes of their checkpoints' names: each phase counts its own steps.
PHASES = {PROBE: "probe_", TRAIN: "step_"}
# Optional files of a checkpoint.
SCORE, EMA = "score.json", "ema.safetensors"
# {file name: {"bytes", "sha256"}} of all other files: a checkpoint is checked against it before a run resumes from it.
MANIFEST = "manifest.json"
# Prefixes of folders that are about to go, and of damaged ones.
_REMOVING, _DAMAGED = ".removing_", "damaged_"


@dataclass(frozen=True, order=True)
class Score:
    """How good a model is, to be compared: by `quality`, the metric that decides, as a number that is larger for a
    better model; of equals by `minus_loss`, the negative loss on the same set. -inf for NaN, and for a loss that is
    not known, as in checkpoints of earlier versions. `chosen`: the step at which the model was chosen although one
    before was better, since that may have been luck; 0: it was not."""

    quality: float
    minus_loss: float = -math.inf
    chosen: int = field(default=0, compare=False)

    @property
    def rank(self) -> tuple[int, float, float]:
        """What checkpoints are ranked by: the latest choice first."""
        return self.chosen, self.quality, self.minus_loss


@dataclass(frozen=True)
class Checkpoints:
    """The folder checkpoints/ of a run: step_00000120/ ..., and `last` and `best`, which name two of them.

    The `keep` newest are kept, and the `keep_best` best of those with a score. Checkpoints of a probe phase,
    probe_00000040/ ..., count as older than all others, and are removed when the first other one is complete.
    """

    root: Path
    keep: int
    keep_best: int = 1

    def save(
        self,
        step: int,
        weights: Mapping[str, Tensor],
        state: Mapping[str, Any],
        score: Score | None = None,
        *,
        ema: Mapping[str, Tensor] | None = None,
        phase: str = TRAIN,
    ) -> Path:
        """Write the checkpoint of `step` durably, then move the links and remove old checkpoints; return its folder.

        `state` holds plain values and tensors only, so that it loads with weights_only. `score` is the result of the
        model's evaluation at this step; None: it was not evaluated. `ema`: the averaged weights, if there are any.
        """
        target = self.folder_of(step, phase)
        # The same step again, after a stop right after a regular checkpoint: it is the same model.
        score = read_score(target) if score is None else score
        self._sweep()
        with replacing_folder(target, durable=True, old=_REMOVING) as aside:
            _write_files(aside, weights, state, score, ema)
        self._move_links(target, phase)
        self._prune()
        return target

    def folder_of(self, step: int, phase: str) -> Path:
        """Where the checkpoint of that step is, or would be."""
        return self.root / f"{PHASES[phase]}{step:08d}"

    def _recover(self) -> None:
        """Restore a checkpoint left as .removing_* by a kill during its replacement; pruned ones are older."""
        newest = max(map(_age, self._all()), default=(False, -1))
        for old in self.root.glob(f"{_REMOVING}*"):
            target = self.root / old.name.removeprefix(_REMOVING)
            if _age(target) > newest and not damage_of(old):
                old.rename(target)

    def newest_sound(self) -> tuple[Path | None, list[str]]:
        """The newest checkpoint that is as it was written, None if there is none; and what was wrong with newer ones.

        Those are renamed to damaged_step_00000120 and the like. UserError if all checkpoints are damaged.
        """
        self._recover()
        troubles: list[str] = []
        for folder in reversed(self._all()):
            trouble = damage_of(folder)
            if not trouble:
                # A process may have been killed between putting it there and what `save` does then.
                self._move_links(folder, PROBE if folder.name.startswith(PHASES[PROBE]) else TRAIN)
                self._prune()
                return folder, troubles
            troubles.append(f"{folder.name}: {trouble}")
            target = folder.with_name(f"{_DAMAGED}{folder.name}")
            shutil.rmtree(target, ignore_errors=True)
            folder.rename(target)
        if troubles:
            raise UserError(
                f"No checkpoint in {self.root} is whole: {'; '.join(troubles)}.",
                f"They are kept there as {_DAMAGED}*. To begin anew remove {self.root.parent}.",
            )
        return None, []

    def complete(self, phase: str = TRAIN) -> list[Path]:
        """The complete checkpoints of a phase, oldest first."""
        return sorted(self.root.glob(f"{PHASES[phase]}{'[0-9]' * 8}"), key=step_of) if self.root.is_dir() else []

    def _all(self) -> list[Path]:
        return [folder for phase in PHASES for folder in self.complete(phase)]

    def ranking(self, phase: str = TRAIN) -> list[Path]:
        """The complete checkpoints of a phase that have a score, best first; of equals the older one."""
        scores = {folder: score for folder in self.complete(phase) if (score := read_score(folder)) is not None}
        # Stable, though reversed: the older of equals stays first.
        return sorted(scores, key=lambda folder: scores[folder].rank, reverse=True)

    def _move_links(self, newest: Path, phase: str) -> None:
        point(self.root / "last", newest.name)
        if ranking := self.ranking(phase):
            point(self.root / "best", ranking[0].name)
        else:  # it may point at a checkpoint of the probe, which is about to be removed
            remove(self.root / "best")

    def _prune(self) -> None:
        is_training = bool(self.complete())
        for phase in PHASES:
            there, spared = self.complete(phase), []
            if not (is_training and phase == PROBE):
                spared = there[-self.keep :] + self.ranking(phase)[: self.keep_best]
            for old in there:
                if old not in spared:
                    # Renamed first: a process that is killed halfway leaves no incomplete checkpoint.
                    shutil.rmtree(old.rename(self.root / f"{_REMOVING}{old.name}"))

    def _sweep(self) -> None:
        """Remove what killed processes have left."""
        for left in (*self.root.glob(".writing_*"), *self.root.glob(f"{_REMOVING}*")):
            shutil.rmtree(left)


def _write_files(
    folder: Path,
    weights: Mapping[str, Tensor],
    state: Mapping[str, Any],
    score: Score | None,
    ema: Mapping[str, Tensor] | None,
) -> None:
    save_weights(folder / "model.safetensors", weights)
    if ema is not None:
        save_weights(folder / EMA, ema)
    torch.save(dict(state), folder / "state.pt")
    if score is not None:
        stored = {"score": _stored(score.quality), "loss": _stored(-score.minus_loss)}
        stored |= {"chosen": score.chosen} if score.chosen else {}
        (folder / SCORE).write_text(to_json(stored), encoding="utf-8")
    manifest = {file.name: _fingerprint(file) for file in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(to_json(manifest), encoding="utf-8")


def _fingerprint(file: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    return {"bytes": add_to_digest(digest, file), "sha256": digest.hexdigest()}


def damage_of(folder: Path) -> str:
    """What differs from the checkpoint's manifest, in a few words; empty if nothing does.

    UserError if it may not be read: it is somebody else's, and may well be whole.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, expected in manifest.items():
            if (size := (folder / name).stat().st_size) != expected["bytes"]:
                return f"{name} has {size} bytes instead of {expected['bytes']}"
            if _fingerprint(folder / name) != expected:
                return f"{name} has other bytes than were written"
    except PermissionError as error:
        raise UserError(f"{error.filename}: {error.strerror}.", "Ask its owner for the right to read it.") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return typed_line(error)
    return ""


def _age(folder: Path) -> tuple[bool, int]:
    """Sorts checkpoints by time: those of the probe come before all others."""
    return not folder.name.startswith(PHASES[PROBE]), step_of(folder)


def step_of(folder: Path) -> int:
    """The step of a checkpoint, from its folder's name."""
    return int(folder.name.rpartition("_")[2])


def quality_of(task: Task, metric: str, metrics: Mapping[str, float]) -> float:
    """Return a metric as a checkpoint's score: larger for a better model; -inf for NaN."""
    value = metrics[metric] if task.higher_is_better(metric) else -metrics[metric]
    return -math.inf if math.isnan(value) else value


def score_of(task: Task, metric: str, metrics: Mapping[str, float]) -> Score:
    """Return the score of a model with these metrics on a set."""
    loss = metrics.get("loss", math.nan)
    return Score(quality_of(task, metric, metrics), -math.inf if math.isnan(loss) else -loss)


def _stored(value: float) -> float | None:
    """The number for a JSON file, which has no NaN and no infinity."""
    return value if math.isfinite(value) else None


def read_score(folder: Path) -> Score | None:
    """The score of a checkpoint; None if it has none, or a damaged one."""
    stored = read_sound_json(folder / SCORE, dict)
    quality, loss, chosen = stored.get("score", ""), stored.get("loss"), stored.get("chosen", 0)
    are_numbers = all(isinstance(each, (int, float, type(None))) for each in (quality, loss, chosen))
    if not are_numbers:
        return None
    minus_loss = -math.inf if loss is None else -float(loss)
    return Score(-math.inf if quality is None else float(quality), minus_loss, int(chosen or 0))


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and state as `Checkpoints.save` was given them, on the CPU. UserError if they cannot be read."""
    weights = checkpoint_weights(folder)
    with _reading(folder):
        return weights, torch.load(folder / "state.pt", map_location="cpu", weights_only=True)


def checkpoint_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint, on the CPU. UserError if they cannot be read."""
    with _reading(folder):
        return read_weights(folder / "model.safetensors")


def load_ema(folder: Path) -> dict[str, Tensor] | None:
    """The averaged weights of a checkpoint, on the CPU; None if it has none. UserError if they cannot be read."""
    with _reading(folder):
        return read_weights(folder / EMA) if (folder / EMA).is_file() else None


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        hint = "Remove its folder to resume from the one before it."
        if isinstance(error, PermissionError):
            hint = "Ask its owner for the right to read it."
        raise UserError(f"The checkpoint {folder} cannot be read: {reason_of(error)}.", hint) from error
