"""Evaluation sees every sample exactly once on any number of processes."""

import pytest
import torch

from ddp_ft.data.image.device_transform import DeviceTransform
from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.evaluation.evaluator import Scorer
from ddp_ft.models.libraries.base import call_with_images
from ddp_ft.tasks.single_label import SingleLabel
from tests.support import nets
from tests.support.loading import eval_loader
from tests.support.ranks import run_ranks


class Noise:
    """A source of random images in seven unequal classes."""

    def __init__(self, count):
        self.pixels = nets.images(count)

    def __len__(self):
        return len(self.pixels)

    def name(self, index):
        return str(index)

    def read(self, index):
        return {"image": self.pixels[index], "target": torch.tensor(min(6, index % 11))}


def untouched(image):
    return image


def measure(world, count):
    torch.manual_seed(0)
    source, preprocess = Noise(count), Preprocess((16, 16), (0.5,) * 3, (0.5,) * 3)
    loader = eval_loader(source, untouched, 8, world.size, world.rank, 0)
    prepare = DeviceTransform(preprocess, world.device, channels_last=False)
    task, seen = SingleLabel(tuple("abcdefg")), []
    real_metrics, real_records = task.metrics, task.records
    task.records = lambda batch: {**real_records(batch), "index": batch["index"]}
    task.metrics = lambda predictions, records: (
        seen.append((predictions, records)) or real_metrics(predictions, records)
    )
    evaluation = Scorer(nets.plain(7), call_with_images, task, prepare, world, "fp32").evaluate(loader, count)
    assert (evaluation.predictions is not None) == world.is_main
    return evaluation.metrics, [(len(found["logits"]), records["index"].tolist()) for found, records in seen]


@pytest.mark.parametrize("count", [1, 101])
def test_exact_at_any_world_size(count):
    reference = None
    for world_size in (1, 2, 3):
        outcomes = run_ranks(world_size, measure, count)
        assert outcomes[0][1] == [(count, list(range(count)))]
        assert all(not seen for _, seen in outcomes[1:])
        assert all(metrics == outcomes[0][0] for metrics, _ in outcomes)
        reference = reference or outcomes[0][0]
        assert outcomes[0][0] == reference


def test_metrics_against_scikit_learn():
    from sklearn import metrics as sk

    generator = torch.Generator().manual_seed(1)
    outputs = torch.randn(101, 7, generator=generator)
    target = torch.randint(0, 7, (101,), generator=generator)
    found = SingleLabel(tuple("abcdefg")).metrics({"logits": outputs}, {"target": target})
    guesses = outputs.argmax(dim=1)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(target, guesses))
    assert found["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(target, guesses))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(target, guesses, average="macro"))
    assert found["top5_accuracy"] == pytest.approx(sk.top_k_accuracy_score(target, outputs, k=5, labels=range(7)))
    assert found["loss"] == pytest.approx(sk.log_loss(target, outputs.double().softmax(1), labels=range(7)), abs=1e-5)


def test_top5_only_where_it_means_something():
    outputs, target = torch.randn(9, 5), torch.arange(9) % 5
    assert "top5_accuracy" not in SingleLabel(tuple("abcde")).metrics({"logits": outputs}, {"target": target})
