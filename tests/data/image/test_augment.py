import pickle
import random
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from ddp_ft.config.loading import AUGMENT_PRESETS
from ddp_ft.config.schema import AugmentConfig
from ddp_ft.data.image.augment import Distortions, distortions
from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.data.image.transforms import train_transform
from ddp_ft.data.sampler import GlobalOrderSampler
from ddp_ft.errors import UserError
from tests.data.image.image_files import NumberSource
from tests.support.loading import train_loader

PREPROCESS = Preprocess((24, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
MEAN = torch.tensor([124, 116, 104], dtype=torch.uint8).view(3, 1, 1)
PLAIN = AugmentConfig()
ALL = AugmentConfig(
    crop_min=0.2, vertical_flip=0.5, right_angles=0.5, rotation=20.0, translation=0.1, scale=0.2, policy="randaugment",
    color_jitter=0.4, grey=0.3, blur=0.5, erasing=0.5,
)  # fmt: skip
ONE_EACH = {
    "crop_min": replace(PLAIN, crop_min=0.1),
    "flip": replace(PLAIN, flip=1.0),
    "vertical_flip": replace(PLAIN, vertical_flip=0.5),
    "right_angles": replace(PLAIN, right_angles=0.5),
    "rotation": replace(PLAIN, rotation=10.0),
    "translation": replace(PLAIN, translation=0.2),
    "scale": replace(PLAIN, scale=0.3),
    "grey": replace(PLAIN, grey=0.5),
    "blur": replace(PLAIN, blur=0.5),
    "randaugment": replace(PLAIN, policy="randaugment"),
    "trivialaugment": replace(PLAIN, policy="trivialaugment"),
    "color_jitter": replace(PLAIN, color_jitter=0.3),
    "erasing": replace(PLAIN, erasing=0.3),
}


def image(seed: int = 0, size: tuple[int, int] = (40, 50)) -> torch.Tensor:
    """A smooth image, as geometric distortions of noise are noise."""
    corners = torch.randint(0, 256, (1, 3, 4, 4), generator=torch.Generator().manual_seed(seed)).float()
    return torch.nn.functional.interpolate(corners, size, mode="bilinear")[0].to(torch.uint8)


def augmented(augment: AugmentConfig, count: int = 30) -> list[torch.Tensor]:
    """The same image under `count` states of the generator."""
    transform, given = train_transform(PREPROCESS, augment), image()
    results = []
    for seed in range(count):
        torch.manual_seed(seed)
        results.append(transform(given))
    return results


def differing(some: list[torch.Tensor], others: list[torch.Tensor]) -> int:
    return sum(not torch.equal(one, other) for one, other in zip(some, others, strict=True))


def distances_from(reference: AugmentConfig, other: AugmentConfig, count: int) -> torch.Tensor:
    """Mean difference in grey levels of each pair of results."""
    pairs = [torch.stack(augmented(augment, count)).float() for augment in (reference, other)]
    return (pairs[0] - pairs[1]).abs().mean(dim=(1, 2, 3))


@pytest.mark.parametrize("name", ONE_EACH)
def test_each_key_changes_the_pixels(name: str) -> None:
    results = augmented(ONE_EACH[name])
    assert {(result.shape, result.dtype) for result in results} == {((3, 24, 32), torch.uint8)}
    assert differing(results, augmented(PLAIN)) > 2
    assert differing(results, augmented(ONE_EACH[name])) == 0, "drawn from something else than torch's generator"


def test_magnitude_is_honoured() -> None:
    randaugment = ONE_EACH["randaugment"]
    distances = []
    for magnitude in (1, 9, 30):
        distances.append(distances_from(PLAIN, replace(randaugment, magnitude=magnitude), 60).mean())
    assert distances[0] < distances[1] < distances[2]


def test_amount_of_jitter_is_honoured() -> None:
    def furthest(amount: float) -> float:
        whole = replace(PLAIN, crop_min=1.0, flip=0.0)
        return float(distances_from(whole, replace(whole, color_jitter=amount), 30).max())

    assert 0 < furthest(0.05) < 0.3 * furthest(0.5)


@pytest.mark.parametrize("policy", ["none", "randaugment", "trivialaugment"])
def test_all_in_their_order_are_torchvisions_own(policy: str) -> None:
    fill, bilinear = MEAN.flatten().tolist(), v2.InterpolationMode.BILINEAR
    policies = {
        "none": v2.Identity(),
        "randaugment": v2.RandAugment(magnitude=12, interpolation=bilinear, fill=fill),
        "trivialaugment": v2.TrivialAugmentWide(interpolation=bilinear, fill=fill),
    }
    crop = train_transform(PREPROCESS, AugmentConfig("none", 0.3, 0.5, vertical_flip=0.5, right_angles=0.5))
    moved = v2.RandomAffine(15, (0.1, 0.1), (0.8, 1.2), interpolation=bilinear, fill=fill)
    jitter, grey = v2.ColorJitter(0.3, 0.3, 0.3), v2.RandomGrayscale(0.3)
    blur = v2.RandomApply([v2.GaussianBlur((5, 3))], 0.5)  # a tenth of 32 and 24 pixels, odd
    theirs = v2.Compose([crop, moved, policies[policy], jitter, grey, blur, v2.RandomErasing(0.5, value=fill)])
    augment = AugmentConfig(
        "none", 0.3, 0.5, 0.5, 0.5, 15, 0.1, 0.2, policy, magnitude=12, color_jitter=0.3, grey=0.3, blur=0.5,
        erasing=0.5,
    )  # fmt: skip
    ours = train_transform(PREPROCESS, augment)
    for seed in range(60):
        torch.manual_seed(seed)
        expected = theirs(image(seed))
        torch.manual_seed(seed)
        assert torch.equal(ours(image(seed)), expected)


def test_erased_places_are_the_models_mean_behind_all_else() -> None:
    fully = replace(ALL, erasing=1.0)
    shares = [float((result == MEAN).all(0).float().mean()) for result in augmented(fully)]
    assert all(0.01 < share < 0.5 for share in shares)
    assert max((MEAN.flatten() - 255 * torch.tensor(PREPROCESS.mean)).abs()) <= 0.5  # 0 once normalised


@pytest.mark.parametrize("policy", ["randaugment", "trivialaugment"])
def test_places_that_a_policy_leaves_empty_are_the_models_mean(policy: str) -> None:
    transform = distortions(PREPROCESS, replace(PLAIN, policy=policy, magnitude=30))
    assert transform is not None
    white = torch.full((3, 24, 32), 255, dtype=torch.uint8)
    found = 0
    for seed in range(40):
        torch.manual_seed(seed)
        found += bool((transform(white) == MEAN).all(0).any())
    assert found > 5


def test_the_image_itself_is_left_as_it_is() -> None:
    given = image(size=(24, 32))
    before = given.clone()
    transform = train_transform(PREPROCESS, AugmentConfig("none", 1.0, 0.0, color_jitter=0.5, erasing=1.0))
    assert not torch.equal(transform(given), before) and torch.equal(given, before)


def test_nothing_is_drawn_from_python_or_numpy() -> None:
    for augment in ONE_EACH.values():
        random.seed(1)
        np.random.seed(1)
        before, numpy_before = random.getstate(), np.random.get_state()[1].copy()
        first = augmented(augment)
        assert random.getstate() == before and (np.random.get_state()[1] == numpy_before).all()
        random.seed(2)
        np.random.seed(2)
        assert differing(augmented(augment), first) == 0


def by_position(world: int, workers: int, micro: int | None = None) -> dict[int, bytes]:
    """The augmented pixels at all positions of two epochs, over all ranks."""
    seen: dict[int, bytes] = {}
    for rank in range(world):
        sampler = GlobalOrderSampler(12, 6, world, rank, seed=3)
        source, transform = NumberSource(12), train_transform(PREPROCESS, ALL)
        for micro_batches in train_loader(source, transform, sampler, micro, workers, 0, 4):
            for batch in micro_batches:
                assert batch["image"].is_contiguous(memory_format=torch.channels_last)
                pixels = [image.contiguous().numpy().tobytes() for image in batch["image"]]
                seen |= dict(zip(batch["position"].tolist(), pixels, strict=True))
    return seen


def test_pixels_depend_on_neither_ranks_nor_workers() -> None:
    expected = by_position(1, 0)
    assert sorted(expected) == list(range(24)) and len(set(expected.values())) == 24
    for world, workers, micro in ((2, 0, None), (3, 0, 1), (1, 1, 4), (1, 2, None), (2, 1, 2)):
        assert by_position(world, workers, micro) == expected


def test_distortions_run_on_one_thread_whatever_the_caller_has() -> None:
    # The mean of an image, which contrast takes, depends on the number of threads in its last bits.
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        seen = Distortions([lambda image: image + torch.get_num_threads()])(torch.zeros(3, 2, 2, dtype=torch.uint8))
        assert (seen == 1).all() and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_nothing_is_added_where_nothing_is_asked_for() -> None:
    assert distortions(PREPROCESS, AugmentConfig()) is None
    assert distortions(PREPROCESS, AugmentConfig(magnitude=30, mixup=1.0, cutmix=1.0)) is None


@pytest.mark.parametrize("size", [(1, 1), (1, 60), (300, 2)])
def test_odd_images(size: tuple[int, int]) -> None:
    for augment in (ALL, replace(ALL, policy="trivialaugment", erasing=1.0)):
        transform = train_transform(PREPROCESS, augment)
        for seed in range(20):
            torch.manual_seed(seed)
            assert transform(image(size=size)).shape == (3, 24, 32)


def test_transforms_can_be_sent_to_spawned_workers() -> None:
    copy = pickle.loads(pickle.dumps(train_transform(PREPROCESS, ALL)))
    torch.manual_seed(5)
    expected = copy(image())
    torch.manual_seed(5)
    assert torch.equal(train_transform(PREPROCESS, ALL)(image()), expected)


def test_unknown_policy() -> None:
    with pytest.raises(UserError, match=r"randaugmnt[\s\S]*randaugment"):
        train_transform(PREPROCESS, AugmentConfig(policy="randaugmnt"))


def test_light_is_what_the_defaults_say() -> None:
    defaults = {f"augment.{field.name}": getattr(AugmentConfig(), field.name) for field in fields(AugmentConfig)}
    light = AUGMENT_PRESETS["light"]
    assert light == {name: defaults[name] for name in light}
    assert AugmentConfig().preset == "light"


@pytest.mark.parametrize("name", AUGMENT_PRESETS)
def test_a_preset_sets_all_but_the_magnitude(name: str) -> None:
    wanted = {f"augment.{field.name}" for field in fields(AugmentConfig)} - {
        "augment.preset",
        "augment.magnitude",
        "augment.transform",
    }
    assert set(AUGMENT_PRESETS[name]) == wanted


def test_presets_vary_images_as_much_as_their_names_say() -> None:
    def spread(name: str) -> float:
        settings = {key.removeprefix("augment."): value for key, value in AUGMENT_PRESETS[name].items()}
        results = torch.stack(augmented(AugmentConfig(name, **settings), 60)).float()
        return float(results.std(dim=0).mean())

    none, light, medium, heavy = (spread(name) for name in ("none", "light", "medium", "heavy"))
    assert none < 1 < light < 0.8 * min(medium, heavy)
