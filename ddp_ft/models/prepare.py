"""Prepare a built model for training: new head, batch norm, frozen parts, weights on the device."""

from dataclasses import replace

import torch

from ddp_ft.config.schema import RunConfig
from ddp_ft.contracts import BuiltModel, LoadReport
from ddp_ft.distributed.world import World
from ddp_ft.models.activation_checkpointing import recompute_blocks
from ddp_ft.models.batch_norm import prepare_batch_norm
from ddp_ft.models.freezing import Stage, TrainingMode, freeze_parameters, unfreeze_plan
from ddp_ft.models.head import initialise_head
from ddp_ft.models.introspection import Trial
from ddp_ft.models.libraries.registry import USER_FILES
from ddp_ft.models.precision import place
from ddp_ft.models.rehearsal import rehearse
from ddp_ft.models.weights import load_weights


def prepare(
    built: BuiltModel, config: RunConfig, bias: torch.Tensor | None, world: World
) -> tuple[BuiltModel, list[Stage]]:
    """Return the model, whose head starts from `bias` (one per output; None: zeros), and the stages of its unfreezing.

    The model is left in the last stage, in which most of it learns. Collective. UserError for a network that fails in
    training mode.
    """
    initialise_head(built.module, built.head, bias)
    module = prepare_batch_norm(built.module, config.model.batch_norm, world.device.type, world.size)
    stages = unfreeze_plan(config.freeze.schedule, config.freeze.parts, module, built.head)
    freeze_parameters(module, stages[-1].frozen)
    TrainingMode(module, config.model.batch_norm)()
    trial, name = Trial(built.processor, built.call), config.model.name or ""
    is_own = built.spec["library"] == USER_FILES
    # A network may be written for a GPU, or for autocast.
    may_differ = world.device.type == "cuda" or config.compute.precision not in ("auto", "fp32")
    seen = world.from_main(lambda: rehearse(module, trial, name, is_own, may_differ))
    if config.compute.recompute:
        recompute_blocks(module, name)
    return replace(built, module=module, unused=seen.unused, least=seen.least, ends_in=seen.ends_in), stages


def load_and_place(built: BuiltModel, first: Stage, config: RunConfig, world: World, channels_last: bool) -> LoadReport:
    """Freeze as in the first stage, load the weights on rank 0 and copy them to all ranks' devices."""
    freeze_parameters(built.module, first.frozen)
    report = world.from_main(lambda: load_weights(built, config.model.name or "", config.model.weights))
    place(built.module, world.device, channels_last)
    world.broadcast_module(built.module)
    return report
