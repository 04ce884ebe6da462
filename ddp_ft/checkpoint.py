"""Checkpoints that are complete or absent, and the few files that must never be half-written."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ddp_ft.errors import UserError

PREFIX = "step_"


class Checkpoints:
    """The folder checkpoints/ of a run: step_00000120/ ..., and the links `last` and `best` to two of them."""

    def __init__(self, root: Path, keep: int) -> None:
        self.root = root
        self.keep = keep

    def save(self, step: int, weights: Mapping[str, Tensor], state: Mapping[str, Any], is_best: bool) -> Path:
        """Write the checkpoint of `step` aside, make it durable, then rename it and move the links.

        `state` holds plain values and tensors only, so that it loads with weights_only.
        """
        target = self.root / f"{PREFIX}{step:08d}"
        aside = self.root / f".writing_{target.name}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        save_weights(aside / "model.safetensors", weights)
        torch.save(dict(state), aside / "state.pt")
        _sync_folder(aside)
        if target.exists():  # the same step again, after a stop that came right behind a regular checkpoint
            shutil.rmtree(target)
        aside.rename(target)
        _sync_file(self.root)
        _point(self.root / "last", target.name)
        if is_best:
            _point(self.root / "best", target.name)
        self._prune()
        return target

    def latest(self) -> Path | None:
        """The newest complete checkpoint; None if there is none."""
        complete = self._complete()
        return complete[-1] if complete else None

    def _complete(self) -> list[Path]:
        return sorted(self.root.glob(f"{PREFIX}*")) if self.root.is_dir() else []

    def _prune(self) -> None:
        best = (self.root / "best").resolve()
        for old in self._complete()[: -self.keep]:
            if old.resolve() != best:
                shutil.rmtree(old)


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and state as `Checkpoints.save` was given them, on the CPU."""
    state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    return load_file(folder / "model.safetensors"), state


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
