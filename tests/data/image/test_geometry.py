"""Flips and turns are exact, for sides that are not equal too; the affine resampling fills what it empties."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from ddp_ft.config.loading import make_config
from ddp_ft.config.schema import AugmentConfig
from ddp_ft.data.image.augment import distortions
from ddp_ft.data.image.geometry import Turn, draw_turn
from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.data.image.transforms import train_transform
from ddp_ft.errors import UserError

WHOLE = AugmentConfig("none", crop_min=1.0, flip=0.0)
NUMBERS = torch.arange(6, dtype=torch.uint8).reshape(1, 2, 3)


def test_places_of_pixels() -> None:
    expected = {
        Turn(False, False, 0): [[0, 1, 2], [3, 4, 5]], Turn(True, False, 0): [[2, 1, 0], [5, 4, 3]],
        Turn(False, True, 0): [[3, 4, 5], [0, 1, 2]], Turn(True, True, 0): [[5, 4, 3], [2, 1, 0]],
        Turn(False, False, 1): [[2, 5], [1, 4], [0, 3]], Turn(False, False, 2): [[5, 4, 3], [2, 1, 0]],
        Turn(False, False, 3): [[3, 0], [4, 1], [5, 2]], Turn(True, False, 1): [[0, 3], [1, 4], [2, 5]],
    }  # fmt: skip
    for turn, pixels in expected.items():
        assert turn(NUMBERS)[0].tolist() == pixels
        assert turn.size_before(turn(NUMBERS).shape[1:]) == [2, 3]


def test_each_right_angle_is_as_frequent() -> None:
    torch.manual_seed(0)
    seen = Counter(draw_turn(replace(WHOLE, vertical_flip=0.25, right_angles=0.6)) for _ in range(4000))
    assert sum(count for turn, count in seen.items() if turn.vertical) == pytest.approx(1000, abs=120)
    for quarters in (1, 2, 3):
        assert sum(count for turn, count in seen.items() if turn.quarters == quarters) == pytest.approx(800, abs=110)


def test_nothing_is_drawn_for_keys_that_are_off() -> None:
    """So runs without them have the crops, flips and distortions of versions without them."""
    torch.manual_seed(3)
    torch.rand(1)
    expected = torch.get_rng_state()
    torch.manual_seed(3)
    draw_turn(AugmentConfig())
    assert torch.equal(torch.get_rng_state(), expected)
    assert distortions(Preprocess((8, 8), (0.5,) * 3, (0.2,) * 3), AugmentConfig()) is None


@pytest.mark.parametrize("size", [(24, 24), (16, 40)])
def test_turned_images_have_the_models_size_and_are_not_cut(size: tuple[int, int]) -> None:
    """Half the image is white: so is half of each result, on the side that the turn says."""
    transform = train_transform(
        Preprocess(size, (0.5,) * 3, (0.2,) * 3, "nearest"), replace(WHOLE, right_angles=1.0, vertical_flip=0.5)
    )
    image = torch.zeros(3, 40, 40, dtype=torch.uint8)
    image[:, :20] = 255
    sides = Counter()
    for seed in range(40):
        torch.manual_seed(seed)
        found = transform(image)
        assert found.shape == (3, *size) and float(found.float().mean()) == pytest.approx(127.5)
        sides[tuple(int(found[0, row, column]) for row in (0, -1) for column in (0, -1))] += 1
    assert len(sides) == 4


def test_the_affine_resampling_fills_with_the_mean_and_keeps_to_its_bounds() -> None:
    preprocess = Preprocess((32, 32), (0.2, 0.4, 0.6), (0.2,) * 3)
    white = torch.full((3, 32, 32), 255, dtype=torch.uint8)
    mean = torch.tensor([51, 102, 153], dtype=torch.uint8).view(3, 1, 1)
    for key, value, most in (("rotation", 30.0, 0.3), ("translation", 0.25, 0.5), ("scale", 0.5, 0.75)):
        transform = distortions(preprocess, replace(WHOLE, **{key: value}))
        shares = []
        for seed in range(60):
            torch.manual_seed(seed)
            shares.append(float((transform(white) == mean).all(0).float().mean()))
        assert 0.4 * most < max(shares) <= most, key


@pytest.mark.parametrize("given", ["right_angles=1.5", "rotation=200", "scale=1", "blur=-0.1", "translation=x"])
def test_rubbish(given: str) -> None:
    name, _, value = given.partition("=")
    with pytest.raises(UserError, match=f"augment.{name} = "):
        make_config({f"augment.{name}": value})
