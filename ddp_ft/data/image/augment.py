"""Distortions of a training image after crop and flip: an affine one, a policy of shape and colour, and single ones."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from ddp_ft.config.schema import AugmentConfig
from ddp_ft.data.image.geometry import affine
from ddp_ft.data.image.own_transform import OwnTransform
from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.errors import UserError, known_names

POLICIES = ("none", "randaugment", "trivialaugment")
# SimCLR's (arXiv 2002.05709): the deviation in pixels, and the kernel's side as a share of the image's.
BLUR_SIGMAS, BLUR_KERNEL = (0.1, 2.0), 0.1


class Distortions:
    """Transforms of an image, one after the other, to the same bits on any number of threads."""

    def __init__(self, steps: Sequence[Callable[[Tensor], Tensor]]) -> None:
        self.steps = steps

    def __call__(self, image: Tensor) -> Tensor:
        """uint8 C x H x W -> the same."""
        # Interleaved pixels, as resizing returns them, make the colour operations up to five times slower.
        image = image.contiguous()
        with _one_thread():
            for step in self.steps:
                image = step(image)
        return image


def distortions(preprocess: Preprocess, augment: AugmentConfig) -> Distortions | None:
    """The configured distortions; None if there are none.

    The affine one, RandAugment (arXiv 1909.13719, two operations) or TrivialAugment (arXiv 2103.10158), colour jitter,
    grey, blur and random erasing (arXiv 1708.04896) are torchvision's. Empty places get the model's mean, which
    normalising makes 0 up to half a grey level. All draw from torch's global CPU generator. UserError for an unknown
    policy.
    """
    mean = [float(round(255 * value)) for value in preprocess.mean]
    moved = affine(augment, mean)
    steps: list[Callable[[Tensor], Tensor]] = [] if moved is None else [moved]
    if augment.policy != "none":
        steps.append(_policy(augment, mean))
    if augment.color_jitter > 0:
        steps.append(v2.ColorJitter(augment.color_jitter, augment.color_jitter, augment.color_jitter))
    if augment.grey > 0:
        steps.append(v2.RandomGrayscale(augment.grey))
    if augment.blur > 0:
        sides = [2 * max(1, round(BLUR_KERNEL * side / 2)) + 1 for side in reversed(preprocess.size)]
        steps.append(v2.RandomApply([v2.GaussianBlur(sides, BLUR_SIGMAS)], augment.blur))
    if augment.erasing > 0:
        steps.append(v2.RandomErasing(augment.erasing, value=mean))  # type: ignore[arg-type]  # it takes sequences
    if augment.transform is not None:
        steps.append(OwnTransform(augment.transform))
    return Distortions(steps) if steps else None


def _policy(augment: AugmentConfig, fill: list[float]) -> Callable[[Tensor], Tensor]:
    # Bilinear, as in torchvision's reference training: the default, nearest, leaves jagged edges.
    how = InterpolationMode.BILINEAR
    if augment.policy == "randaugment":
        return v2.RandAugment(magnitude=augment.magnitude, interpolation=how, fill=fill)
    if augment.policy == "trivialaugment":
        return v2.TrivialAugmentWide(interpolation=how, fill=fill)
    raise UserError(f"augment.policy = '{augment.policy}' is unknown.", known_names(augment.policy, POLICIES))


@contextmanager
def _one_thread() -> Iterator[None]:
    """As in a loader's worker. Contrast takes the image's mean, whose last bits follow the number of threads."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
