"""Losses and metrics of the user's own."""

import json

import pytest
import torch
import torch.nn.functional as F

from ddp_ft.contracts import LABEL, LABELS, NUMBERS
from ddp_ft.errors import UserError
from ddp_ft.tasks.registry import restore_task
from tests.tasks.task_cases import ONE_NUMBER, batch_of, code, estimates_of, make, metrics_of, outputs_for, refuses

LOSSES = """
class Module(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("factor", torch.tensor(2.0))
    def forward(self, outputs, targets):
        return self.factor * F.cross_entropy(outputs, targets, reduction="none")

def factory(factor=2.0):
    return lambda outputs, targets: factor * F.cross_entropy(outputs, targets, reduction="none")

def plain(outputs, targets):
    return 2 * F.cross_entropy(outputs, targets, reduction="none")

ready = Module()
"""


@pytest.mark.parametrize("name", ["Module", "factory", "plain", "ready"])
def test_loss_of_the_users_own(tmp_path, name):
    """It is used in training and evaluation, without smoothing; class weights weigh its samples."""
    reference = f"{code(tmp_path, LOSSES)}:{name}"
    task = make(LABEL, loss__name=reference, loss__class_weights="1,2,3", loss__label_smoothing=0.5)
    batch = batch_of(LABEL)
    outputs = outputs_for(task)
    loss, weight = task.loss(outputs, batch)
    weighted = F.cross_entropy(outputs, batch["target"], weight=torch.tensor([1.0, 2, 3]))
    assert float(loss / weight) == pytest.approx(2 * float(weighted))
    found = metrics_of(task, outputs, batch)
    assert found["loss"] == pytest.approx(2 * float(F.cross_entropy(outputs, batch["target"])), abs=1e-5)
    restored = restore_task(task.name, json.loads(json.dumps(task.settings())))
    assert metrics_of(restored, outputs, batch) == found


def test_loss_of_the_users_own_for_other_tasks(tmp_path):
    file = code(
        tmp_path,
        "def hinge(outputs, targets): return F.relu(1 - (2 * targets - 1) * outputs).sum(1)\n"
        "def cubic(outputs, targets): return (outputs - targets).abs().pow(3).sum(1)\n",
    )
    task, batch = make(LABELS, loss__name=f"{file}:hinge"), batch_of(LABELS)
    outputs = outputs_for(task)
    expected = F.relu(1 - (2 * batch["target"] - 1) * outputs).sum()
    assert float(task.loss(outputs, batch)[0]) == pytest.approx(float(expected))
    task, batch = make(NUMBERS, loss__name=f"{file}:cubic"), batch_of(NUMBERS)
    expected = (outputs[:, :2] - task.targets(batch)).abs().pow(3).sum()
    assert float(task.loss(outputs[:, :2], batch)[0]) == pytest.approx(float(expected))
    refuses("loss.class_weights", "hinge", kind=LABELS, loss__name=f"{file}:hinge", loss__class_weights="balanced")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("def mine(o, t): return F.cross_entropy(o, t)", ["shape ()", "(B,)", "shares of several processes"]),
        ("def mine(o, t): return F.cross_entropy(o, t).repeat(3)", ["shape (3,)"]),
        ("def mine(o, t): return 1.5", ["float", "(B,)"]),
        ("def mine(o, t): return o.sum(1).detach()", ["without a gradient"]),
        ("def mine(o, t): return (o - o.mean(0)).pow(2).sum(1)", ["another loss"]),
        ("def mine(o, t): return o.sum(1) * torch.rand(len(o))", ["another loss", "random"]),
        ("def mine(o, t): return o.sum(1).squeeze()", ["another loss"]),
        ("def mine(o, t): return o.sum(1) / 0", ["inf", "ordinary outputs", "finite values"]),
        ("def mine(o, t): return o.sum(1) + (o - o).sqrt().sum(1)", ["gradient", "not finite"]),
        ("def mine(o, t): return o - t", ["failed on outputs (8, 3) and targets (8,)", "RuntimeError"]),
        ("def mine(): raise RuntimeError('no, never')", ["no, never", "without arguments"]),
        ("class mine:\n    def __init__(self, weight): pass", ["weight", "without arguments"]),
        ("class mine: pass", ["cannot be called"]),
        ("mine = 3", ["int", "cannot be called"]),
        ("class mine(nn.Linear):\n    def __init__(self): super().__init__(3, 1)", ["parameters of its own"]),
        ("other = 1", ["has no 'mine'"]),
    ],
)
def test_losses_that_are_refused(tmp_path, text, parts):
    refuses(*parts, loss__name=f"{code(tmp_path, text)}:mine")


def test_files_that_are_not_there():
    refuses("No such file", loss__name="nowhere.py:Loss")
    refuses("No such file", eval__extra="nowhere.py:Metric")


METRICS = """
import torchmetrics
from torchmetrics.classification import MulticlassCohenKappa, MultilabelHammingDistance, MultilabelAUROC

class CohenKappa(MulticlassCohenKappa):
    higher_is_better = True

class Area(MultilabelAUROC):
    pass

class Hamming(MultilabelHammingDistance):
    pass

class LargestError(torchmetrics.Metric):
    higher_is_better = False
    def __init__(self):
        super().__init__()
        self.add_state("worst", torch.tensor(0.0), dist_reduce_fx="max")
    def update(self, predictions, targets):
        assert predictions.ndim == targets.ndim == 1
        self.worst = (predictions - targets).abs().max()
    def compute(self):
        return self.worst

class NoDirection:
    def update(self, predictions, targets): self.count = len(targets)
    def compute(self): return self.count
"""


def with_metric(kind, file, name, data=None):
    task = make(kind, data, eval__extra=f"{file}:{name}")
    batch = batch_of(kind, data)
    outputs = outputs_for(task)
    restored = restore_task(task.name, json.loads(json.dumps(task.settings())))
    found = metrics_of(task, outputs, batch)
    assert metrics_of(restored, outputs, batch) == found
    return task, outputs, batch, found


def test_metric_of_the_users_own(tmp_path):
    from sklearn import metrics as sk

    file = code(tmp_path, METRICS)
    task, outputs, batch, found = with_metric(LABEL, file, "CohenKappa")
    assert found["cohen_kappa"] == pytest.approx(sk.cohen_kappa_score(batch["target"], outputs.argmax(1)))
    assert task.higher_is_better("cohen_kappa")
    with pytest.raises(UserError, match="cohen_kappa"):
        task.higher_is_better("cohen_kapa")
    task, outputs, batch, found = with_metric(LABELS, file, "Hamming")
    assert found["hamming"] == pytest.approx(sk.hamming_loss(batch["target"], outputs.sigmoid() > 0.5))
    assert not task.higher_is_better("hamming")
    found = with_metric(LABELS, file, "Area")[-1]
    assert found["area"] == pytest.approx(sk.roc_auc_score(batch["target"], outputs))
    task, outputs, batch, found = with_metric(NUMBERS, file, "LargestError", ONE_NUMBER)
    assert found["largest_error"] == pytest.approx(float((estimates_of(task, outputs) - batch["target"]).abs().max()))
    assert not task.higher_is_better("largest_error")


def test_metric_of_a_library(tmp_path):
    from scipy import stats

    task = make(NUMBERS, ONE_NUMBER, eval__extra="torchmetrics.regression:SpearmanCorrCoef")
    batch, outputs = batch_of(NUMBERS, ONE_NUMBER), outputs_for(task)
    expected = stats.spearmanr(outputs[:, 0], batch["target"][:, 0]).statistic
    assert metrics_of(task, outputs, batch)["spearman_corr_coef"] == pytest.approx(float(expected), rel=1e-5)


def test_metric_without_a_direction_is_computed_but_decides_nothing(tmp_path):
    task, _, _, found = with_metric(LABEL, code(tmp_path, METRICS), "NoDirection")
    assert found["no_direction"] == 11.0
    with pytest.raises(UserError, match="higher_is_better = True"):
        task.higher_is_better("no_direction")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("class Mine: pass", ["makes a Mine", "update"]),
        ("Mine = 3", ["int"]),
        ("class Mine:\n    def __init__(self, a): pass", ["could not be made", "num_classes"]),
        (
            "class Mine:\n    def update(self, p, t): p / t[0, 0]\n    def compute(self): return 1",
            ["failed on", "(8, 3)"],
        ),
        (
            "class Mine:\n    def update(self, p, t): pass\n    def compute(self): return torch.ones(3)",
            ["shape (3,)", "average"],
        ),
        ("class Mine:\n    def update(self, p, t): pass\n    def compute(self): return {}", ["a dict"]),
        ("class Other: pass", ["has no 'Mine'"]),
    ],
)
def test_metrics_that_are_refused(tmp_path, text, parts):
    refuses(*parts, eval__extra=f"{code(tmp_path, text)}:Mine")


def test_names_of_metrics(tmp_path):
    file = code(tmp_path, METRICS.replace("NoDirection", "Accuracy"))
    refuses("accuracy is computed anyway", "another name", eval__extra=f"{file}:Accuracy")
    refuses("eval.extra = 'kappa'", "FILE.py:CLASS", eval__extra="kappa")


def test_a_model_predicts_where_its_files_are_not(tmp_path):
    settings = {
        "loss__name": f"{code(tmp_path, LOSSES)}:plain",
        "eval__extra": f"{code(tmp_path, METRICS, 'm.py')}:Hamming",
    }
    stored = make(LABEL, loss__name=settings["loss__name"]).settings()
    for file in tmp_path.glob("*.py"):
        file.unlink()
    restored = restore_task("single-label", stored)
    assert estimates_of(restored, torch.zeros(1, 3)).tolist() == [pytest.approx([1 / 3] * 3)]
    with pytest.raises(UserError, match="No such file"):
        metrics_of(restored, torch.zeros(1, 3), {"target": torch.tensor([0])})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_buffers_of_a_loss_follow_the_outputs(tmp_path):
    task, batch = make(LABEL, loss__name=f"{code(tmp_path, LOSSES)}:Module"), batch_of(LABEL)
    outputs = outputs_for(task)
    found = task.loss(outputs.cuda(), {name: tensor.cuda() for name, tensor in batch.items()})
    torch.testing.assert_close([each.cpu() for each in found], list(task.loss(outputs, batch)))
