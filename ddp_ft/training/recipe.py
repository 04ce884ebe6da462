"""The model that a run begins with, and what the recipe `auto` becomes."""

from dataclasses import replace
from typing import Any

import torch

from ddp_ft.config.data import DataConfig
from ddp_ft.config.forms import check_head
from ddp_ft.config.schema import RunConfig
from ddp_ft.contracts import BuiltModel, Source
from ddp_ft.distributed.world import World
from ddp_ft.models import build_model
from ddp_ft.models.backbone import MOST_FEATURE_BYTES, feature_width
from ddp_ft.models.build import Variant
from ddp_ft.texts import plural, sample_noun
from ddp_ft.training.plan import Plan
from ddp_ft.training.request import Request

# Above this many samples `auto` does not compute features.
MOST_PROBED_SAMPLES = 100_000


def choose_recipe(config: RunConfig, built: BuiltModel, train_samples: int) -> tuple[str, str]:
    """Return what the recipe `auto` becomes, and why.

    Probing first was better than training all layers at once on all small sets that were measured (docs/accuracy.md; on
    a larger one, of 1,500 images, once worse), and the better of both models is kept, so it is chosen if possible.
    """
    if config.model.weights == "none":
        return "full", "nothing is pretrained (--weights none)"
    if config.adapter.name != "none":
        return "lora", "--adapter decides what is trainable"
    if config.freeze.parts != "none" or config.freeze.schedule is not None:
        return "fine_tune", "--freeze or freeze.schedule decides what is trainable"
    if built.head_path is None:
        return "fine_tune", "the output is not that of one head for a whole sample, so there are no features to cut off"
    size, samples = 4 * train_samples * feature_width(built), plural(train_samples, sample_noun(built.processor.kind))
    if train_samples > MOST_PROBED_SAMPLES or size > MOST_FEATURE_BYTES:
        return "fine_tune", f"features of {samples} would take {size / 2**30:.1f} GiB in each process"
    return "lp_ft", f"a pretrained model and {samples}"


def build(config: RunConfig, outputs: int, unit: str) -> BuiltModel:
    """Return the model that is asked for, with a head of so many outputs for each such unit, its weights drawn from the
    run's seed."""
    model = config.model
    assert model.name is not None  # the command line has checked
    check_head(config.head.name)
    torch.manual_seed(config.seed)
    variant = Variant(model.drop_path, config.data.channels, unit)
    built = build_model(model.name, outputs, model.image_size, model.weights, config.head, variant)
    return replace(built, processor=built.processor.configured(config.data))


def fit_inputs(
    built: BuiltModel, data: DataConfig, source: Source, earlier: Plan | None, world: World
) -> tuple[BuiltModel, dict[str, Any]]:
    """Return the model with a processor that knows of the training set what an earlier start has measured, else what
    rank 0 measures now; and that. Collective."""
    inputs = earlier.inputs if earlier else world.from_main(lambda: built.processor.measure(data, source))
    return replace(built, processor=built.processor.fitted(inputs)), inputs


def settle_recipe(config: RunConfig, request: Request, built: BuiltModel, samples: int) -> tuple[RunConfig, str, str]:
    """Return the configuration with its recipe, and the recipe's name and reason; `samples`: of the training set."""
    if config.recipe != "auto":
        return config, config.recipe, "as asked for"
    recipe, why = choose_recipe(config, built, samples)
    return request.config(recipe), recipe, why
