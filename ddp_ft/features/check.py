"""Which settings of features go together, and with the model."""

from ddp_ft.config.schema import RunConfig
from ddp_ft.contracts import BuiltModel
from ddp_ft.errors import UserError
from ddp_ft.models.backbone import feature_width


def check_features(config: RunConfig, built: BuiltModel) -> None:
    """UserError for settings of features that do not go together, or not with the model."""
    cached, probed = config.freeze.cache_features, config.probe.epochs > 0
    mixes = bool(config.augment.mixup or config.augment.cutmix)
    if (cached or probed) and built.head_path is None:
        what = "freeze.cache_features" if cached else "probe.epochs"
        raise UserError(
            f"{what}: {config.model.name} does not end with its head, so its features cannot be cut off.",
            "Use --recipe full, or --freeze backbone to train the head alone on images.",
        )
    if cached and (config.freeze.parts != "backbone" or config.freeze.schedule or mixes):
        raise UserError(
            "freeze.cache_features trains on features that never change: it needs --freeze backbone, "
            "no freeze.schedule, and neither mixup nor cutmix.",
            "Leave freeze.cache_features out, or use --recipe linear_probe.",
        )
    if config.freeze.views > 1 and not (cached or probed):
        raise UserError(
            f"freeze.views = {config.freeze.views} is of features, and this run computes none.",
            "Add --recipe linear_probe or --set probe.epochs=20, or leave freeze.views at 1.",
        )


def check_size(built: BuiltModel, samples: int, most: float) -> None:
    """UserError if the features of so many samples, each view counted, take more than `most` GiB; 0: any size."""
    size = 4 * feature_width(built) * samples
    if most and size > most * 2**30:
        raise UserError(
            f"The features of this data would take {size / 2**30:.1f} GiB; freeze.cache_gb allows {most:g}.",
            "Raise --set freeze.cache_gb=..., lower freeze.views, or train on images: --freeze backbone without "
            "freeze.cache_features.",
        )
