"""Every pair of task, head, frozen parts and loss that makes sense trains, and the rest says clearly why not."""

import itertools

import pytest
from PIL import Image

from ddp_ft.errors import UserError
from tests.support.runs import read, train_here

HEAD_FILE = """
from torch import nn


class Deep(nn.Sequential):
    def __init__(self, in_features, outputs):
        super().__init__(nn.Linear(in_features, 8), nn.ReLU(), nn.Linear(8, outputs))


def sample_loss(outputs, targets):
    return ((outputs.float().mean(-1) - targets.float().reshape(len(targets), -1).mean(-1)) ** 2)
"""
LOSSES = {
    "single-label": ["cross_entropy", "focal", "bce", "soft_f1", "FILE.py:sample_loss"],
    "multi-label": ["bce", "focal", "soft_f1", "FILE.py:sample_loss"],
    "regression": ["mse", "l1", "huber", "FILE.py:sample_loss"],
}
TARGETS = {"single-label": "kind", "multi-label": "tags", "regression": "size,weight"}
HEADS = ["linear", "mlp:8", "FILE.py:Deep"]
PARTS = ["none", "backbone", "stages:1", "type:Conv2d", "regex:^0", "norm"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve images, a table of labels and numbers for them, and a file of the user's own code."""
    folder = tmp_path_factory.mktemp("table")
    rows = ["image,kind,tags,size,weight"]
    for number in range(12):
        Image.new("RGB", (20, 20), (20 * number, 128, 255 - 20 * number)).save(folder / f"{number}.png")
        tags = ";".join(name for bit, name in ((1, "odd"), (2, "two")) if number & bit)
        rows.append(f"{number}.png,{'ab'[number % 2]},{tags},{number * 1.5},{100 - number}.25")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    (folder / "code.py").write_text(HEAD_FILE)
    return folder


def options(folder, task, head, parts, loss):
    head, loss = (text.replace("FILE.py", str(folder / "code.py")) for text in (head, loss))
    table = ["--set", f"data.target=[{TARGETS[task]}]", "--task", task, "--val-split", 0.25]
    return [*table, "--head", head, "--freeze", parts, "--loss", loss]


def pairs_of(case):
    return set(itertools.combinations(enumerate(case), 2))


def combinations():
    """Each value of one option with each of every other; the case with the most new pairs comes next."""
    cases = [(task, *rest) for task in LOSSES for rest in itertools.product(HEADS, PARTS, LOSSES[task])]
    missing, chosen = set().union(*map(pairs_of, cases)), []
    while missing:
        chosen.append(max(cases, key=lambda case: len(pairs_of(case) & missing)))
        missing -= pairs_of(chosen[-1])
    return chosen


@pytest.mark.slow
@pytest.mark.parametrize(("task", "head", "parts", "loss"), combinations())
def test_one_epoch_of_every_pair(folder, tmp_path, task, head, parts, loss):
    net = "with_batch_norm"
    train_here(folder / "table.csv", tmp_path / "r", *options(folder, task, head, parts, loss), net=net)
    summary = read(tmp_path / "r", "summary.json")
    assert summary["status"] == "done"
    assert read(tmp_path / "r", "best/model.json")["task"] == task
    assert all(value == value for value in summary["val"].values())


@pytest.mark.parametrize(
    ("task", "loss"),
    [(task, loss) for task in LOSSES for other in LOSSES for loss in LOSSES[other] if loss not in LOSSES[task]],
)
def test_a_loss_of_another_task_is_refused(folder, tmp_path, task, loss):
    with pytest.raises(UserError, match=r"--loss|loss\.name"):
        train_here(folder / "table.csv", tmp_path / "r", *options(folder, task, "linear", "none", loss))
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("task", "more", "message"),
    [
        ("regression", ["--mixup", 0.2], "mix"),
        ("regression", ["--class-weights", "balanced"], "class_weights"),
        ("regression", ["--sampling", "balanced"], "balanced"),
        ("single-label", ["--sampling", "weighted"], "weight"),
        ("single-label", ["--class-weights", "1,2,3"], "3"),
        ("single-label", ["--class-weights", "1,-2"], "-2"),
        ("single-label", ["--class-weights", "1,nan"], "nan"),
        ("single-label", ["--freeze", "regex:nothing"], "nothing"),
        ("single-label", ["--freeze", "regex:."], "freez"),
        ("single-label", ["--set", "freeze.schedule={1: none, 0: backbone}"], "freeze.schedule"),
        ("single-label", ["--set", "freeze.schedule={0: none, 1: backbone}"], "freeze.schedule"),
        ("single-label", ["--set", "optim.l2_sp=0.1"], "l2_sp"),
        ("single-label", ["--set", "freeze.cache_features=true"], "cache_features"),
        ("single-label", ["--recipe", "linear_probe", "--freeze", "none"], "--recipe linear_probe .* --freeze none"),
        ("single-label", ["--recipe", "linear_probe", "--freeze", "backbone", "--mixup", 0.2], "linear_probe .* mixup"),
        ("single-label", ["--schedule", "multistep"], "milestones"),
        ("single-label", ["--metric", "rmse"], "rmse"),
        ("single-label", ["--set", "optim.betas=[0.9]"], "betas"),
        ("regression", ["--set", "data.target=kind"], "number"),
    ],
)
def test_what_does_not_go_together_says_why(folder, tmp_path, task, more, message):
    base = options(folder, task, "linear", "none", "auto")
    with pytest.raises(UserError, match=message):
        train_here(folder / "table.csv", tmp_path / "r", *base, *more)
    assert not (tmp_path / "r").exists()
