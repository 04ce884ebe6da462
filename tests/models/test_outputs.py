"""A network's outputs, wherever in its result they are."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import ddp_ft
from ddp_ft.errors import UserError
from ddp_ft.inference.trained_model import load_trained
from ddp_ft.models.outputs import OutputsAlone, OutputsCall
from tests.support.images import SHAPES
from tests.support.runs import train_here

LOGITS, WIDE = torch.arange(6.0).reshape(2, 3), torch.zeros(2, 5)
IMAGES = {"image": torch.zeros(2, 3, 4, 4)}


class Named(NamedTuple):
    aux_logits: Tensor
    logits: Tensor


def found(result: Any, outputs: int = 3, images: int = 2) -> Tensor:
    call = OutputsCall(lambda module, batch: result, outputs)
    return call(nn.Identity(), {"image": torch.zeros(images, 3, 4, 4)})


@pytest.mark.parametrize(
    "result",
    [
        LOGITS, LOGITS[:, :, None, None], (LOGITS, WIDE), [WIDE, LOGITS], {"out": LOGITS, "aux": -LOGITS},
        {"head": {"scores": LOGITS}, "seen": WIDE}, {"logits": LOGITS, "other": -LOGITS}, Named(-LOGITS, LOGITS),
        SimpleNamespace(logits=LOGITS, other=-LOGITS, count=3), SimpleNamespace(scores=LOGITS, hidden=(WIDE, None)),
        (torch.ones(2, 3, dtype=torch.int64), LOGITS), (LOGITS, LOGITS[:, :, None]),
    ],
)  # fmt: skip
def test_where_they_are_known(result: Any) -> None:
    assert torch.equal(found(result), LOGITS)


@pytest.mark.parametrize(
    ("result", "what"),
    [(LOGITS.to(torch.complex64), "complex64"), (LOGITS.to_sparse(), "sparse_coo"), (LOGITS.to(torch.int64), "int64")],
)
def test_what_no_loss_takes_is_refused(result: Tensor, what: str) -> None:
    with pytest.raises(UserError, match=rf"2 x 3 \({what}\): no float tensor is 2 x 3"):
        found(result)


def test_rows_that_are_not_those_of_the_images() -> None:
    with pytest.raises(UserError, match="tensor of 5 x 3: no float tensor is 2 x 3"):
        found(torch.zeros(5, 3))


@dataclass(frozen=True, slots=True)
class Slotted:
    """A result without a __dict__."""

    scores: Tensor
    features: Tensor


def test_fields_of_a_dataclass_with_slots() -> None:
    assert found(Slotted(torch.ones(2, 3), torch.zeros(2, 8))).sum() == 6


def test_a_single_number_and_a_single_image() -> None:
    assert torch.equal(found(torch.ones(2), outputs=1), torch.ones(2, 1))
    assert torch.equal(found(LOGITS[0], images=1), LOGITS[:1]), "as of a network that squeezes its outputs"


@pytest.mark.parametrize(
    ("result", "what"),
    [
        ((LOGITS, LOGITS), "a tuple with [0]: 2 x 3, [1]: 2 x 3: 2 tensors are 2 x 3 (images x outputs)"),
        ({"a": WIDE}, "a dict with a: 2 x 5: no float tensor is 2 x 3"),
        (LOGITS.flatten(), "a tensor of 6: "), (LOGITS.t(), "a tensor of 3 x 2"),
        (LOGITS[:, :, None].repeat(1, 1, 5), "a tensor of 2 x 3 x 5"), (None, "a NoneType with no tensors"),
        ({"logits": WIDE}, "a dict with logits: 2 x 5"),
    ],
)  # fmt: skip
def test_where_they_are_not(result: Any, what: str) -> None:
    with pytest.raises(UserError) as caught:
        found(result)
    assert what in caught.value.message and "`logits`" in caught.value.hint


def test_a_batch_as_large_as_something_else_changes_nothing() -> None:
    table = torch.ones(5, 3)  # such as a vector for each class
    call = OutputsCall(lambda module, batch: (table, batch["image"][:, 0, 0, :3]), 3)
    for images in (2, 5):
        assert torch.equal(call(nn.Identity(), {"image": torch.zeros(images, 3, 4, 4)}), torch.zeros(images, 3))


def test_another_result_in_training_mode() -> None:
    net = nn.Dropout(0.0)
    call = OutputsCall(lambda module, batch: {"seen": WIDE, "y": LOGITS} if module.training else (LOGITS, WIDE), 3)
    assert torch.equal(call(net.train(), IMAGES), LOGITS) and torch.equal(call(net.eval(), IMAGES), LOGITS)


class Tells(nn.Module):
    """Returns a mapping, in training mode with more in it."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3, stride=2), nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        seen = self.body(images).relu().mean((2, 3))
        return {"scores": self.head(seen), **({"seen": seen} if self.training else {})}


def test_trained_and_loaded(shapes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_here(shapes, run, "--model", f"{__file__}:Tells", "--recipe", "full")
    model, image = ddp_ft.load(run), next(shapes.rglob("*.png"))
    answer = model(image)
    assert answer.label in SHAPES and len(answer.probabilities) == 3
    trained = load_trained(run, torch.device("cpu"))
    images = model.preprocess(image)[None].expand(2, -1, -1, -1)
    alone = OutputsAlone(trained.module, trained.call)(images)
    assert torch.equal(alone, trained.module(images)["scores"])
