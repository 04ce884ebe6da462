import numpy as np
import pytest
import torch

from ddp_ft.contracts import LABEL, LABELS, NUMBERS
from ddp_ft.data.sampler import GlobalOrderSampler, sampling_weights
from ddp_ft.errors import UserError

CLASSES = np.array([2, 0, 0, 0, 2, 0, 5, 0], dtype=np.int64)
LABEL_ROWS = np.array([[1, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 0]], dtype=np.float32)


def class_shares(kind: str) -> list[int]:
    """How often each class of CLASSES comes in three epochs."""
    weights = sampling_weights(kind, CLASSES, None, LABEL)
    order = GlobalOrderSampler(len(CLASSES), 4, 1, 0, seed=0, weights=weights)
    drawn = [CLASSES[address.index] for step in range(6) for address in order.global_batch(step)]
    return [drawn.count(label) for label in (0, 2, 5)]


def test_natural_is_each_sample_once() -> None:
    for kind in (LABEL, LABELS, NUMBERS):
        assert sampling_weights("natural", CLASSES, np.ones(8, np.float32), kind) is None
    assert class_shares("natural") == [15, 6, 3]


def test_balanced_classes_are_equally_frequent() -> None:
    weights = sampling_weights("balanced", CLASSES, None, LABEL)
    assert weights is not None and weights.dtype == torch.float64
    assert weights.tolist() == [1 / 2, 1 / 5, 1 / 5, 1 / 5, 1 / 2, 1 / 5, 1, 1 / 5]
    assert all(6 <= count <= 9 for count in class_shares("balanced"))  # 2 or 3 of 8 in each of three epochs


def test_balanced_with_several_labels_follows_the_rarest() -> None:
    weights = sampling_weights("balanced", LABEL_ROWS, None, LABELS)
    assert weights is not None
    assert weights.tolist() == [1 / 3, 1 / 3, 1, 1 / 3]  # the last one has no label
    with pytest.raises(UserError, match="no sample has a label"):
        sampling_weights("balanced", np.zeros((4, 2), np.float32), None, LABELS)


def test_balanced_numbers() -> None:
    with pytest.raises(UserError, match=r"needs classes[\s\S]*--sampling weighted"):
        sampling_weights("balanced", np.ones((4, 1), np.float32), None, NUMBERS)


@pytest.mark.parametrize("kind", [LABEL, LABELS, NUMBERS])
def test_weighted_gives_the_samples_own_weights(kind: str) -> None:
    weights = sampling_weights("weighted", CLASSES, np.array([0, 1, 2.5, 0.5] * 2, np.float32), kind)
    assert weights is not None and weights.dtype == torch.float64
    assert weights.tolist() == [0, 1, 2.5, 0.5] * 2


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (None, r"no weights\.[\s\S]*data\.weight=COLUMN"),
        ([1, -2, 1, -3], r"2 of 4 weights .*-2\.0 of sample 1"),
        ([1, 1, float("nan"), 1], r"1 of 4 weights .*nan of sample 2"),
        ([float("inf"), 1, 1, 1], r"inf of sample 0"),
        ([0, 0, 0, 0], "all weights are 0"),
    ],
)
def test_weights_that_cannot_be_drawn_by(weights: list[float] | None, message: str) -> None:
    given = None if weights is None else np.array(weights, np.float32)
    with pytest.raises(UserError, match=message):
        sampling_weights("weighted", CLASSES[:4], given, LABEL)


def test_unknown_name() -> None:
    with pytest.raises(UserError, match=r"balancd[\s\S]*balanced"):
        sampling_weights("balancd", CLASSES, None, LABEL)
