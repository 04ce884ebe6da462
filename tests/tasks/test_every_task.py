"""What holds for every task and loss."""

import json
import math

import numpy as np
import pytest
import torch

from ddp_ft.contracts import LABEL, LABELS, NUMBERS
from ddp_ft.errors import UserError
from ddp_ft.tasks.registry import restore_task
from tests.tasks.task_cases import (
    DATA,
    MANY_CLASSES,
    ONE_NUMBER,
    SAMPLES,
    batch_of,
    estimates_of,
    make,
    metrics_of,
    outputs_for,
)

CASES = {
    "cross_entropy": (LABEL, None, {}),
    "focal": (LABEL, None, {"loss__name": "focal"}),
    "focal of small gamma": (LABEL, None, {"loss__name": "focal", "loss__focal_gamma": 0.3}),
    "bce": (LABEL, None, {"loss__name": "bce"}),
    "soft_f1": (LABEL, None, {"loss__name": "soft_f1"}),
    "weighted": (LABEL, None, {"loss__class_weights": "balanced"}),
    "many classes": (LABEL, MANY_CLASSES, {}),
    "labels": (LABELS, None, {}),
    "labels, focal": (LABELS, None, {"loss__name": "focal", "loss__focal_gamma": 0.3}),
    "labels, soft_f1": (LABELS, None, {"loss__name": "soft_f1"}),
    "labels, weighted": (LABELS, None, {"loss__class_weights": "effective", "loss__positive_weights": "balanced"}),
    "labels of folders": (LABEL, None, {"task": "multi-label"}),
    "numbers": (NUMBERS, None, {}),
    "one number": (NUMBERS, ONE_NUMBER, {}),
    "l1": (NUMBERS, None, {"loss__name": "l1"}),
    "huber": (NUMBERS, None, {"loss__name": "huber", "loss__huber_delta": 0.5}),
}


@pytest.fixture(params=CASES, ids=list(CASES))
def case(request):
    kind, data, settings = CASES[request.param]
    data = data or DATA[kind]
    task = make(kind, data, **settings)
    weight = torch.linspace(0, 2, SAMPLES)
    return task, batch_of(kind, data, weight), outputs_for(task)


def part(batch, chosen):
    return {name: tensor[chosen] for name, tensor in batch.items()}


def test_metrics_of_any_set_and_their_directions(case):
    """The whole set, one sample, one kind of target, and a network that gives the same for all or nothing at all."""
    task, batch, outputs = case
    names = metrics_of(task, outputs, batch).keys()
    assert task.primary_metric in names and "loss" in names
    alike = part(batch, torch.zeros(4, dtype=torch.long))
    absent = {**batch, "target": torch.zeros_like(batch["target"])}
    for some, given in [
        (batch, torch.zeros_like(outputs)), (part(batch, [3]), outputs[3:4]), (alike, outputs[:4]), (absent, outputs),
    ]:  # fmt: skip
        found = metrics_of(task, given, some)
        assert found.keys() == names
        assert all(type(value) is float and math.isfinite(value) for value in found.values()), found
    assert {type(task.higher_is_better(name)) for name in names} == {bool}
    assert not task.higher_is_better("loss")
    assert math.isnan(metrics_of(task, outputs * math.nan, batch)["loss"])


def test_better_outputs_have_better_metrics(case):
    """In the sense that `higher_is_better` says: guesses against right answers."""
    task, batch, outputs = case
    right = task.targets(batch)
    if right.ndim == 1:
        right = torch.nn.functional.one_hot(right, task.outputs).float()
    right = right if task.name == "regression" else (2 * right - 1) * 9
    good, bad = metrics_of(task, right.float(), batch), metrics_of(task, outputs, batch)
    for name in good:
        gain = good[name] - bad[name]
        assert (gain > 0) if task.higher_is_better(name) else (gain < 0), name


def test_unknown_metric(case):
    task, _, _ = case
    with pytest.raises(UserError, match="no metric of the task"):
        task.higher_is_better("beauty")
    with pytest.raises(UserError, match=f"Did you mean {task.primary_metric}"):
        task.higher_is_better(f"{task.primary_metric}s")


def test_settings_bring_the_task_back(case):
    task, batch, outputs = case
    restored = restore_task(task.name, json.loads(json.dumps(task.settings())))
    assert metrics_of(restored, outputs, batch) == metrics_of(task, outputs, batch)
    assert torch.equal(estimates_of(restored, outputs), estimates_of(task, outputs))
    assert (restored.columns(), restored.outputs) == (task.columns(), task.outputs)
    assert restored.settings() == task.settings()


def test_a_row_has_a_text_for_each_column(case):
    task, _, outputs = case
    assert estimates_of(task, outputs).shape == outputs.shape
    answers = task.answers(task.predictions(outputs, {}))
    assert len(answers) == len(outputs)
    for answer in answers:
        row = task.row(json.loads(json.dumps(answer)))
        assert len(row) == len(task.columns())
        assert all(isinstance(value, str) for value in row)


def test_the_loss_adds_up_over_any_split(case):
    task, batch, outputs = case
    whole, weight = task.loss(outputs, batch)
    assert whole.shape == weight.shape == () and whole.dtype == weight.dtype == torch.float32
    for split in ([list(range(SAMPLES))[k::3] for k in range(3)], [[k] for k in range(SAMPLES)]):
        parts = [task.loss(outputs[chosen], part(batch, chosen)) for chosen in split]
        assert float(sum(loss for loss, _ in parts)) == pytest.approx(float(whole), rel=1e-5)
        assert float(sum(each for _, each in parts)) == pytest.approx(float(weight), rel=1e-5)


def test_a_sample_of_weight_0_counts_for_nothing(case):
    task, batch, outputs = case
    outputs = outputs.clone().requires_grad_()
    loss, weight = task.loss(outputs, batch)
    loss.backward()
    assert float(batch["weight"][0]) == 0 and not outputs.grad[0].any() and outputs.grad[1:].any(1).all()
    rest, rest_weight = task.loss(outputs[1:], part(batch, range(1, SAMPLES)))
    torch.testing.assert_close((loss, weight), (rest, rest_weight))


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_finite(case, scale, dtype):
    """Also where the network is sure, of right and of wrong answers, and in half precision."""
    task, batch, outputs = case
    outputs = (outputs * scale).to(dtype).requires_grad_()
    loss, _ = task.loss(outputs, batch)
    loss.backward()
    assert loss.dtype == torch.float32 and bool(loss.isfinite()) and bool(outputs.grad.isfinite().all())


def test_gradient_against_differences(case):
    task, batch, outputs = case
    outputs = outputs[1:5].requires_grad_()
    some = part(batch, range(1, 5))
    direction = outputs_for(task, 4, seed=3)
    [gradient] = torch.autograd.grad(task.loss(outputs, some)[0], outputs)
    step = 1e-2
    up, down = (float(task.loss(outputs.detach() + sign * step * direction, some)[0]) for sign in (1, -1))
    assert float((gradient * direction).sum()) == pytest.approx((up - down) / (2 * step), rel=2e-2, abs=2e-3)


def test_mixing_takes_shares_of_both(case):
    """A share of 1 is the sample itself, of 0 its partner; in between lies the weighted mean of the two."""
    task, batch, outputs = case
    partner = torch.arange(SAMPLES).flip(0)

    def mixed(share):
        more = {"mix_share": torch.full((SAMPLES,), share), "mix_partner": partner}
        return [float(value) for value in task.loss(outputs, {**batch, **more})]

    own = [float(value) for value in task.loss(outputs, batch)]
    other = [float(value) for value in task.loss(outputs, part(batch, partner))]
    assert mixed(1.0) == pytest.approx(own, rel=1e-5) and mixed(0.0) == pytest.approx(other, rel=1e-5)
    assert own != pytest.approx(other, rel=1e-3)
    assert mixed(0.3) == pytest.approx([0.3 * a + 0.7 * b for a, b in zip(own, other, strict=True)], rel=1e-5)


def test_combining_means_the_mean_prediction(case):
    task, _, outputs = case
    others = [outputs, outputs_for(task, seed=1, scale=30.0), outputs_for(task, seed=2)]
    predictions = [task.predictions(each, {}) for each in others]
    combined = task.combine(predictions)
    assert all(len(tensor) == SAMPLES and bool(tensor.isfinite().all()) for tensor in combined.values())
    expected = torch.stack([estimates_of(task, each) for each in others]).mean(0)
    torch.testing.assert_close(task.estimates(combined), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(task.estimates(task.combine(predictions[:1])), estimates_of(task, outputs))


def test_initial_bias_predicts_the_training_set_at_large(case):
    task, batch, _ = case
    bias = task.initial_bias()
    assert bias.shape == (task.outputs,) and bias.dtype == torch.float32
    predicted = estimates_of(task, bias.unsqueeze(0))[0].double().numpy()
    target = batch["target"].numpy()
    if task.name == "regression":
        np.testing.assert_allclose(predicted, target.mean(0), rtol=1e-6)
        return
    counts = np.bincount(target, minlength=task.outputs) if target.ndim == 1 else target.sum(0)
    samples = SAMPLES + (task.outputs if task.name == "single-label" else 2)
    np.testing.assert_allclose(predicted, (counts + 1) / samples, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_on_cuda_and_metrics_on_the_cpu_in_turn(case):
    task, batch, outputs = case
    expected, metrics = task.loss(outputs, batch), metrics_of(task, outputs, batch)
    for _ in range(2):
        found = task.loss(outputs.cuda(), {name: tensor.cuda() for name, tensor in batch.items()})
        torch.testing.assert_close([each.cpu() for each in found], list(expected))
        assert metrics_of(task, outputs, batch) == metrics
