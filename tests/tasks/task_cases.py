"""One task of each kind, made from data as training does, with outputs and a batch for it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ddp_ft.config.loading import make_config
from ddp_ft.contracts import LABEL, LABELS, NUMBERS, Schema
from ddp_ft.errors import UserError
from ddp_ft.tasks.registry import make_task

CLASSES = ("ant", "bee", "cat")
SAMPLES = 11
GENERATOR = np.random.default_rng(5)

# kind -> (names, targets as a source has them)
DATA = {
    LABEL: (CLASSES, np.array([0, 1, 2, 0, 1, 0, 0, 2, 1, 0, 0], np.int64)),
    LABELS: (CLASSES, np.array(GENERATOR.random((SAMPLES, 3)) < 0.4, np.float32)),
    NUMBERS: (("age", "weight"), (GENERATOR.normal(size=(SAMPLES, 2)) * (3, 40) + (50, 7)).astype(np.float32)),
}
ONE_NUMBER = (("age",), DATA[NUMBERS][1][:, :1])
MANY_CLASSES = (tuple("abcdefg"), np.arange(SAMPLES) % 7)


def make(kind: str, data=None, **settings):
    """The task for some of DATA; settings with __ for the dot."""
    names, targets = data or DATA[kind]
    config = make_config({name.replace("__", "."): value for name, value in settings.items()})
    return make_task(config, Schema(kind, names), targets)


def refuses(*parts: str, kind: str = LABEL, data=None, **settings) -> None:
    with pytest.raises(UserError) as caught:
        make(kind, data, **settings)
    for part in parts:
        assert part in str(caught.value), f"{part!r} is not in: {caught.value}"


def batch_of(kind: str, data=None, weight=None, **more):
    """All samples as one batch, without the images."""
    targets = torch.from_numpy((data or DATA[kind])[1])
    weight = torch.ones(len(targets)) if weight is None else weight
    return {"target": targets, "weight": weight, **more}


def outputs_for(task, samples: int = SAMPLES, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(samples, task.outputs, generator=generator)


def metrics_of(task, outputs, records):
    """The metrics of a set with these outputs of the network."""
    return task.metrics(task.predictions(outputs, records), records)


def estimates_of(task, outputs):
    return task.estimates(task.predictions(outputs, {}))


def row_of(task, estimate):
    return task.row(task.answer(estimate))


def code(folder: Path, text: str, name: str = "mine.py") -> str:
    """A file with that code; gives its path."""
    file = folder / name
    file.write_text(f"import torch\nimport torch.nn.functional as F\nfrom torch import nn\n{text}")
    return str(file)
