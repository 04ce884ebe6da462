"""Mixup and cutmix on pairs of neighbours: drawn with the samples in the loader, applied on the device."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Beta

from ddp_ft.config.schema import AugmentConfig, TrainConfig
from ddp_ft.contracts import Address, Batch
from ddp_ft.data.rng import drawing_from
from ddp_ft.data.targets.registry import KINDS
from ddp_ft.errors import UserError

Box = tuple[int, int, int, int]  # top, left, height, width
NO_BOX: Box = (0, 0, 0, 0)
_OF_PAIR = 1  # makes the seed of a pair differ from that of its first image


@dataclass(frozen=True)
class Mixing:
    """Alphas of mixup (arXiv 1710.09412) and cutmix (arXiv 1905.04899), at least one above 0.

    If both are, each pair of images gets one of the two with equal probability.
    """

    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        alphas = (self.mixup, self.cutmix)
        if not (min(alphas) >= 0 and 0 < max(alphas) < math.inf):
            raise ValueError(f"mixup and cutmix: {alphas}; neither below 0, and one above")

    @staticmethod
    def of(config: AugmentConfig) -> "Mixing | None":
        """The configured mixing; None if there is none. UserError for an infinite alpha."""
        for name in ("mixup", "cutmix"):
            if math.isinf(getattr(config, name)):
                raise UserError(f"--{name} is infinite; expected a number such as 0.2 or 1.", "0 turns it off.")
        return Mixing(config.mixup, config.cutmix) if config.mixup > 0 or config.cutmix > 0 else None

    def check(self, kind: str, train: TrainConfig) -> None:
        """Raise UserError if targets of that kind cannot be mixed, or the global batch or micro-batch has no pair."""
        if not KINDS[kind].can_be_mixed:
            hint = "Leave --mixup and --cutmix at 0, or use another --augment."
            raise UserError(f"augment.mixup and augment.cutmix mix classes; the targets are {kind}.", hint)
        names = " and ".join(f"--{name}" for name in ("mixup", "cutmix") if getattr(self, name) > 0)
        hint = "Make it 2 or more, or leave it out."
        for flag, size in (("--batch-size", train.batch_size), ("--micro-batch", train.micro_batch)):
            if size is not None and size < 2:
                raise UserError(f"{names}: images are mixed in pairs, but {flag} is {size}.", hint)

    def draw(self, height: int, width: int) -> tuple[float, Box]:
        """A pair's share of the own image and target, and the box that is taken from the partner.

        The box is empty for mixup, and the share that of the pixels outside it for cutmix. Draws from torch's
        global CPU generator.
        """
        cuts = self.cutmix > 0 and (self.mixup == 0 or bool(torch.rand(1) < 0.5))
        # In float64, which for small alphas neither underflows nor returns NaN.
        alpha = torch.tensor(self.cutmix if cuts else self.mixup, dtype=torch.float64)
        share = float(Beta(alpha, alpha, validate_args=False).sample())
        if not cuts:
            return share, NO_BOX
        box = _draw_box(1 - share, height, width)
        return 1 - box[2] * box[3] / (height * width), box


def _draw_box(area: float, height: int, width: int) -> Box:
    """A box of that share of the image around a uniform centre, cut off at the borders, as in the paper."""
    side = math.sqrt(area)
    top, tall = _draw_side(int(height * side), height)
    left, wide = _draw_side(int(width * side), width)
    return (top, left, tall, wide) if tall and wide else NO_BOX


def _draw_side(length: int, whole: int) -> tuple[int, int]:
    centre = int(torch.randint(whole, ()))
    first, last = max(0, centre - length // 2), min(whole, centre + length // 2)
    return first, last - first


def draw_mixes(mixing: Mixing, seed: int, addresses: Sequence[Address], height: int, width: int) -> Batch:
    """How a micro-batch of images of that size is mixed; its samples 0 and 1, 2 and 3 and so on are partners.

    "mix_share" (float32, B): share of a sample's own image and target, 1 for a last one without a partner;
    "mix_partner" (int64, B): the partner's place in the micro-batch, its own if there is none;
    "mix_box" (int64, B x 4): top, left, height and width of the box that comes from the partner; zeros: the whole
    image is blended. Drawn for each pair from (seed, epoch, its first position), the same for both.
    """
    mixes = []
    for first, second in zip(addresses[::2], addresses[1::2], strict=False):
        assert second.position == first.position + 1, "a pair was torn apart"
        with drawing_from(seed, first.epoch, first.position, _OF_PAIR):
            mixes += 2 * [mixing.draw(height, width)]
    partners = [place ^ 1 for place in range(len(mixes))]
    if len(mixes) < len(addresses):
        partners.append(len(mixes))
        mixes.append((1.0, NO_BOX))
    return {
        "mix_share": torch.tensor([share for share, _ in mixes], dtype=torch.float32),
        "mix_partner": torch.tensor(partners),
        "mix_box": torch.tensor([box for _, box in mixes]),
    }


def mix_images(images: Tensor, share: Tensor, partner: Tensor, box: Tensor) -> Tensor:
    """Mix float B x C x H x W in place, as `draw_mixes` says, without waiting for the device.

    Each product and each sum of a pixel is rounded once, so its bits do not depend on the rest of the batch.
    """
    top, left, tall, wide = (column.view(-1, 1, 1, 1) for column in box.unbind(1))
    rows = torch.arange(images.shape[2], device=images.device).view(1, 1, -1, 1)
    columns = torch.arange(images.shape[3], device=images.device).view(1, 1, 1, -1)
    inside = (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)
    own = torch.where(tall * wide > 0, (~inside).to(images.dtype), share.to(images.dtype).view(-1, 1, 1, 1))
    others = images[partner].mul_(1 - own)
    return images.mul_(own).add_(others)
