"""Run folders as a finished training leaves them, without a training: with predictions drawn from a seed."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddp_ft.config.loading import make_config
from ddp_ft.contracts import Evaluation
from ddp_ft.distributed.world import World
from ddp_ft.run_folder.evaluations import save_evaluation
from ddp_ft.run_folder.folder import RunFolder
from ddp_ft.run_folder.provenance import record_start
from ddp_ft.tasks.registry import restore_task
from ddp_ft.training.plan import Plan
from tests.support.trained import PREPROCESS, write_model

PLAN = Plan(
    recipe="lp_ft", task="", device="cpu", world_size=1, threads=1, micro_batch=None, workers=0, precision="fp32",
    channels_last=False, train_samples=30, val_samples=0, steps_per_epoch=4, total_steps=12, lr=1e-3,
    grade_elsewhere="b",
)  # fmt: skip


def draw_outputs(task: str, classes: int, samples: int, seed: int, skill: float) -> tuple[Tensor, Tensor]:
    """Outputs and targets; the targets are the same for all seeds. With more `skill` more outputs are right."""
    truth, noise = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    outputs = torch.randn(samples, classes, generator=noise)
    if task == "single-label":
        target = torch.randint(0, classes, (samples,), generator=truth)
        outputs[torch.arange(samples), target] += skill
    elif task == "multi-label":
        target = (torch.rand(samples, classes, generator=truth) < 0.3).float()
        outputs += skill * (target - 0.5)
    else:
        target = torch.randn(samples, classes, generator=truth)
        outputs = target + outputs / skill
    return outputs, target


def write_finished(
    run: Path, names: Sequence[str] = ("cat", "dog", "bird"), task: str = "single-label", samples: int = 60,
    seed: int = 0, skill: float = 2.0, test: bool = False, settings: dict[str, Any] | None = None,
) -> Path:  # fmt: skip
    """A run folder with evaluations of `samples` images that are nowhere; its data has one fingerprint for all."""
    fixed = {"mean": [0.0] * len(names), "std": [1.0] * len(names)} if task == "regression" else {}
    write_model(run / "best", seed, task=task, names=tuple(names), settings=fixed, preprocess=PREPROCESS)
    made = restore_task(task, {"classes": list(names), **fixed})
    given = {"data.path": run / "nowhere", "model.name": "timm/test_resnet", "train.epochs": 3, "seed": seed}
    folder = RunFolder(run)
    folder.write_config(make_config({**given, **(settings or {})}))
    folder.write_json("classes.json", list(names))
    folder.write_json("split.json", {"fingerprint": "f" * 32, "given": True})
    plan = {**PLAN.to_mapping(), "task": task, "val_samples": samples}
    folder.write_json("plan.json", plan)
    record_start(run, World(0, 1, 0, torch.device("cpu")))
    found = {}
    for split in ("val", "test") if test else ("val",):
        outputs, target = draw_outputs(task, len(names), samples, seed + (split == "test"), skill)
        records = {"target": target, "weight": torch.ones(samples)}
        predictions = made.predictions(outputs, records)
        found[split] = made.metrics(predictions, records)
        save_evaluation(run, split, Evaluation(found[split], predictions, records))
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _rows(found["val"])))
    summary = {
        "status": "done", "phase": "train", "step": 12, "epoch": 3.0, "best_step": 12, "best_epoch": 3.0,
        "best_phase": "train", "images_per_second": 123.4, "data_wait_share": 0.2, "train_seconds": 70.0,
        "wall_seconds": 100.0, "compile_seconds": 0.0, "save_copy_seconds": 1.0, "save_stall_seconds": 0.5,
        "restarts": 0, "bad_steps": 0, **found,
    }  # fmt: skip
    folder.write_json("summary.json", summary)
    return run


def _rows(metrics: dict[str, float]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"step": 20 * n, "epoch": n, "split": "train", "phase": "probe", "loss": 1 + 1 / n, "lr/head": 1e-3, "time": n}
        for n in range(1, 5)
    ]
    for step in range(1, 13):
        speed = {"images_per_second": 100.0 + step, "data_wait_share": 0.2, "grad_norm": 1.0 / step}
        rows.append({"step": step, "epoch": step / 4, "split": "train", "loss": 2 / step, "lr/all": 1e-3, **speed})
        if step % 4 == 0:
            rows.append({"step": step, "epoch": step / 4, "split": "val", **metrics})
    return [{"time": 10.0 + number, **row} for number, row in enumerate(rows)]
