"""Trained models and run folders without a training: written in milliseconds, with weights drawn from a seed."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddp_ft.config.loading import make_config
from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.data.image.processor import ImageProcessor
from ddp_ft.data.splits.open import open_splits
from ddp_ft.run_folder.checkpoints import Checkpoints, Score
from ddp_ft.run_folder.folder import RunFolder
from ddp_ft.run_folder.model_folder import describe_model, save_model_folder
from ddp_ft.tasks.registry import restore_task
from tests.support import nets
from tests.support.images import SHAPES

PREPROCESS = Preprocess((24, 24), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "bilinear", crop_pct=0.9)


def draw_weights(net: str, outputs: int, seed: int) -> dict[str, Tensor]:
    """Weights of a network of `nets`, with outputs that differ from image to image."""
    torch.manual_seed(seed)
    module = getattr(nets, net)(outputs)
    weights: dict[str, Tensor] = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    last = [name for name in weights if name.endswith(".weight")][-1]
    weights[last] *= 20
    return weights


def write_model(
    folder: Path, seed: int = 0, net: str = "plain", task: str = "single-label", names: tuple[str, ...] = SHAPES,
    preprocess: Preprocess = PREPROCESS, settings: dict[str, Any] | None = None,
) -> Path:  # fmt: skip
    """A model folder, as best/ of a run is; `settings` are those of the task besides the names."""
    spec = {"library": "file", "name": f"{nets.THIS_FILE}:{net}", "arguments": {"num_classes": len(names)}}
    made = restore_task(task, {"classes": list(names), **(settings or {})})
    description = describe_model(spec, ImageProcessor(preprocess), made, names, "fp32")
    save_model_folder(folder, draw_weights(net, len(names), seed), description)
    return folder


def write_run(
    run: Path, data: Path, checkpoints: dict[int, float | None], net: str = "plain",
    settings: dict[str, Any] | None = None,
) -> Path:  # fmt: skip
    """A run folder on that data with a checkpoint of these scores at each step (drawn from the step as seed).

    best/ is the one of the largest score.
    """
    config = make_config({"data.path": data, "model.name": f"{nets.THIS_FILE}:{net}"}, settings or {})
    folder, splits = RunFolder(run), open_splits(config.data, config.seed)
    folder.create()
    folder.write_config(config)
    folder.write_json("split.json", {"fingerprint": splits.fingerprint, **splits.record})
    store, names = Checkpoints(folder.checkpoints, keep=99), splits.schema.names
    for step, score in checkpoints.items():
        store.save(step, draw_weights(net, len(names), step), {"step": step}, None if score is None else Score(score))
    best = max(checkpoints, key=lambda step: checkpoints[step] or 0, default=0)
    write_model(folder.best, best, net, names=names)
    return run
