"""The gradient of a weighted loss is that of one process, on any split; the user's metric waits for no other rank."""

import numpy as np
import pytest
import torch

from ddp_ft.config.loading import make_config
from ddp_ft.contracts import LABEL, LABELS, NUMBERS, Schema
from ddp_ft.data.image.device_transform import DeviceTransform
from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.distributed.ddp import Trainee, replicate
from ddp_ft.distributed.world import World
from ddp_ft.models.freezing import TrainingMode
from ddp_ft.models.libraries.base import call_with_images
from ddp_ft.tasks.registry import make_task
from ddp_ft.training.gradients import Penalties
from ddp_ft.training.learners import DataLearner
from ddp_ft.training.state import make_scaler
from tests.support import nets
from tests.support.ranks import run_ranks

SAMPLES = 7
PREPROCESS = Preprocess((16, 16), (0.5,) * 3, (0.5,) * 3)
DRAWN = np.random.default_rng(1)
TARGETS = {
    LABEL: np.array([0, 0, 1, 0, 2, 1, 0]),
    LABELS: (DRAWN.random((SAMPLES, 3)) < 0.5).astype(np.float32),
    NUMBERS: DRAWN.normal(5, 2, (SAMPLES, 3)).astype(np.float32),
}
# Unknown labels: one of a sample, all of another, and one class almost wholly.
MASKED = "labels, some unknown"
TARGETS[MASKED] = TARGETS[LABELS].copy()
TARGETS[MASKED][[0, 3, 3, 3, 4, 5, 6], [1, 0, 1, 2, 2, 2, 2]] = np.nan
WEIGHTS = torch.tensor([1.0, 0.2, 3.0, 0.0, 1.5, 2.0, 0.7])
# Uneven shares, and for three ranks one that is a ghost's: a sample of weight 0.
SHARES = {1: [[0, 1, 2, 3, 4, 5, 6]], 2: [[0, 1, 2, 3, 4], [5, 6]], 3: [[0, 1, 2, 3], [4, 5, 6], []]}
SETTINGS = {
    "class weights": (LABEL, {"loss.class_weights": "1,5,20"}),
    "class weights, focal": (LABEL, {"loss.class_weights": "balanced", "loss.name": "focal"}),
    "soft F1": (LABEL, {"loss.class_weights": "effective", "loss.name": "soft_f1"}),
    "labels": (LABELS, {"loss.class_weights": "1,2,3", "loss.positive_weights": "balanced"}),
    "labels, soft F1": (LABELS, {"loss.name": "soft_f1"}),
    "unknown": (MASKED, {"loss.class_weights": "1,2,3", "loss.positive_weights": "balanced"}),
    "unknown, focal": (MASKED, {"loss.name": "focal"}),
    "unknown, soft F1": (MASKED, {"loss.name": "soft_f1"}),
    "numbers": (NUMBERS, {"loss.name": "huber"}),
}


def make_learner(world, module, task):
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
    return DataLearner(
        replica=replicate(Trainee(module, call_with_images), world, distributed=world.store is not None),
        task=task,
        optimizer=optimizer,
        scaler=make_scaler(world.device, "fp32"),
        world=world,
        precision="fp32",
        bounds=make_config({"train.clip_norm": 0}).train,
        penalties=Penalties(module, (), make_config({}).optim),
        to_device=DeviceTransform(PREPROCESS, world.device, channels_last=False),
        mode=TrainingMode(module, "train"),
    )


def micro_batch(kind, chosen, weight):
    chosen = torch.tensor(chosen)
    targets = torch.from_numpy(TARGETS[kind])
    return {"image": nets.images(SAMPLES)[chosen], "target": targets[chosen], "weight": weight}


def gradients(world, case, micro):
    """The gradient after one step, the mean loss and the weight."""
    kind, settings = SETTINGS[case]
    torch.manual_seed(0)
    module = nets.plain()
    task = make_task(make_config(settings), Schema(kind.partition(",")[0], ("a", "b", "c")), TARGETS[kind])
    learner = make_learner(world, module, task)
    share = SHARES[world.size][world.rank]
    size = micro or max(len(share), 1)
    parts = [share[cut : cut + size] for cut in range(0, len(share), size)]
    batches = [micro_batch(kind, part, WEIGHTS[torch.tensor(part)]) for part in parts]
    sums = learner.step(batches or [micro_batch(kind, [0], torch.zeros(1))])
    return [p.grad.clone() for p in module.parameters()], float(sums.loss / sums.weight), float(sums.weight)


def by_hand(case):
    """The gradient of the weighted mean over all samples, by plain autograd."""
    kind, settings = SETTINGS[case]
    torch.manual_seed(0)
    module = nets.plain()
    task = make_task(make_config(settings), Schema(kind.partition(",")[0], ("a", "b", "c")), TARGETS[kind])
    prepare = DeviceTransform(PREPROCESS, torch.device("cpu"), channels_last=False)
    batch = prepare(micro_batch(kind, range(SAMPLES), WEIGHTS))
    loss, weight = task.loss(module(batch["image"]), batch)
    gradient = torch.autograd.grad(loss / weight, list(module.parameters()))
    return gradient, float(loss.detach() / weight), float(weight)


def all_gradients(world, micro):
    return {case: gradients(world, case, micro) for case in SETTINGS}


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_reduced_gradient_is_that_of_one_process(world_size):
    expected = {case: by_hand(case) for case in SETTINGS}
    plain = all_gradients(World(0, 1, 0, torch.device("cpu")), None)
    for outcome in [plain, *run_ranks(world_size, all_gradients, 2)]:
        for case, (gradient, loss, weight) in expected.items():
            found, found_loss, found_weight = outcome[case]
            assert (found_loss, found_weight) == (pytest.approx(loss, rel=1e-6), pytest.approx(weight, rel=1e-6))
            for one, other in zip(found, gradient, strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
            assert max(float(each.abs().max()) for each in gradient) > 1e-3


def test_the_loss_of_unknown_labels_is_the_mean_over_the_known_ones():
    known = ~np.isnan(TARGETS[MASKED])
    task = make_task(make_config({"loss.label_smoothing": 0}), Schema(LABELS, ("a", "b", "c")), TARGETS[MASKED])
    outputs = torch.randn(SAMPLES, 3, generator=torch.Generator().manual_seed(0))
    batch = {"target": torch.from_numpy(TARGETS[MASKED]), "weight": torch.ones(SAMPLES)}
    there = torch.from_numpy(np.nan_to_num(TARGETS[MASKED]))
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(outputs, there, reduction="none")[known].mean()
    loss, weight = task.loss(outputs, batch)
    assert float(loss / weight) == pytest.approx(float(wanted), rel=1e-6)
    assert task.metrics(task.predictions(outputs, {}), batch)["loss"] == pytest.approx(float(wanted), abs=1e-5)
    # Two answers to one image: the known label's share of it is drawn from its partner's too.
    mixed = {**batch, "mix_share": torch.full((SAMPLES,), 0.7), "mix_partner": torch.arange(SAMPLES).flip(0)}
    total, counted = task.loss(outputs, mixed)
    assert bool(total.isfinite()) and float(counted) == pytest.approx(known.sum() / 3, rel=1e-6)


METRIC = """
from torchmetrics.classification import MulticlassCohenKappa
class Kappa(MulticlassCohenKappa):
    pass
"""


def measure(world, file):
    config = make_config({"eval.extra": f"{file}:Kappa"})
    task = make_task(config, Schema(LABEL, ("a", "b", "c")), TARGETS[LABEL])
    outputs = torch.eye(3)[torch.from_numpy(TARGETS[LABEL])]
    return world.from_main(
        lambda: task.metrics(task.predictions(outputs, {}), {"target": torch.from_numpy(TARGETS[LABEL])})
    )


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_users_metric_is_computed_on_one_rank(tmp_path, world_size):
    """torchmetrics would gather from ranks that are not in the call, and hang or count samples twice."""
    (tmp_path / "kappa.py").write_text(METRIC)
    assert [found["kappa"] for found in run_ranks(world_size, measure, tmp_path / "kappa.py")] == [1.0] * world_size
