"""Prepare a built model for training: new head, batch norm, frozen parts, weights on the device."""

from dataclasses import replace

import torch

from ddp_ft.config.schema import RunConfig
from ddp_ft.contracts import BuiltModel, LoadReport
from ddp_ft.distributed.world import World
from ddp_ft.models.activation_checkpointing import recompute_blocks
from ddp_ft.models.adapters.inject import adapted_stages, begin, with_adapter, without_unreached
from ddp_ft.models.adapters.tensors import digest_of_base
from ddp_ft.models.batch_norm import prepare_batch_norm
from ddp_ft.models.freezing import Stage, TrainingMode, freeze_parameters, unfreeze_plan
from ddp_ft.models.head import initialise_head
from ddp_ft.models.precision import place
from ddp_ft.models.rehearsal import rehearse_built
from ddp_ft.models.weights import load_weights


def prepare(
    built: BuiltModel, config: RunConfig, bias: torch.Tensor | None, world: World
) -> tuple[BuiltModel, list[Stage]]:
    """Return the model, whose head starts from `bias` (one per output; None: zeros), and the stages of its unfreezing.

    The model is left in the last stage, in which most of it learns. Collective. UserError for a network that fails in
    training mode, and for an adapter that it cannot have.
    """
    initialise_head(built.module, built.head, bias)
    module = prepare_batch_norm(built.module, config.model.batch_norm, world.device.type, world.size)
    stages = unfreeze_plan(config.freeze.schedule, config.freeze.parts, module, built.head)
    built = with_adapter(replace(built, module=module), config.adapter, config.seed)
    stages = adapted_stages(stages, built)
    freeze_parameters(module, stages[-1].frozen)
    TrainingMode(module, config.model.batch_norm)()
    seen = world.from_main(lambda: rehearse_built(built, config, world.device))
    built = without_unreached(built, seen.unused)
    unused = seen.unused.intersection(name for name, _ in module.named_parameters())
    if config.compute.recompute:
        recompute_blocks(module, config.model.name or "")
    return replace(built, unused=unused, least=seen.least, ends_in=seen.ends_in), stages


def load_and_place(built: BuiltModel, first: Stage, config: RunConfig, world: World, channels_last: bool) -> LoadReport:
    """Freeze as in the first stage, load the weights on rank 0 and copy them to all ranks' devices."""
    freeze_parameters(built.module, first.frozen)
    report = world.from_main(lambda: _load(built, config))
    place(built.module, world.device, channels_last)
    world.broadcast_module(built.module)
    return report


def _load(built: BuiltModel, config: RunConfig) -> LoadReport:
    report = load_weights(built, config.model.name or "", config.model.weights)
    begin(built)
    return replace(report, base=digest_of_base(built))
