"""A model and a head of the user's own, tried on noise, without data."""

from torch import nn

from ddp_ft.config.schema import HeadConfig, ModelConfig
from ddp_ft.models.build import Variant, build_model
from ddp_ft.models.head import own_head
from ddp_ft.models.introspection import Trial
from ddp_ft.models.rehearsal import rehearse

# Of a head that is tried without a model.
FEATURES = 64


def model_trial(model: ModelConfig, head: HeadConfig, outputs: int, channels: int | None) -> str:
    """Build the model with that head, run it, and return a line on it. UserError if that fails."""
    assert model.name is not None
    built = build_model(model.name, outputs, model.image_size, "none", head, Variant(model.drop_path, channels))
    trial = Trial(built.processor, built.call)
    seen = rehearse(built.module, trial, model.name, both_modes=True, may_differ=False)
    shape = " x ".join(map(str, built.processor.example(1)["image"].shape[1:]))
    ends = f"it ends with its head, {built.head_path}" if built.head_path else "it does not end with its head"
    unused = f"; {len(seen.unused)} parameters have no part in the outputs" if seen.unused else ""
    return (
        f"{model.name}: called with images B x {shape} float32, returned B x {outputs} outputs in "
        f"training and in evaluation; {_size(built.module)}; {ends}{unused}."
    )


def head_trial(name: str, outputs: int) -> str:
    """Make and call the head FILE.py:CLASS, and return a line on it. UserError if that fails."""
    module = own_head(name, FEATURES, outputs)
    return f"{name}: called with features 2 x {FEATURES} float32, returned 2 x {outputs} outputs; {_size(module)}."


def _size(module: nn.Module) -> str:
    return f"{sum(each.numel() for each in module.parameters()):,} parameters"
