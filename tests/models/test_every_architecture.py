"""What holds for all architectures, tried on the lightest of each of timm's modules and on all of torchvision."""

import pytest
import timm
import torch
import torchvision

from ddp_ft.contracts import BuiltModel
from ddp_ft.models.backbone import features, head_module
from ddp_ft.models.libraries.base import call_with_images
from tests.models.test_blocks import check_forward_order
from tests.models.test_build import OUTPUTS, TIMM, TORCHVISION, build_on_meta, check_forward, check_head

# Families whose networks compute the outputs from several heads, or continue after the head: 9 of the 178 networks.
WITHOUT = {
    "timm/crossvit", "timm/efficientformer", "timm/efficientformer_v2", "timm/efficientvim", "timm/levit",
    "timm/swiftformer", "timm/volo", "torchvision/squeezenet",
}  # fmt: skip


def _family(name: str) -> str:
    library, _, inner = name.partition("/")
    entry = timm.models.model_entrypoint if library == "timm" else torchvision.models.get_model_builder
    return f"{library}/{entry(inner).__module__.rpartition('.')[2]}"


# CoaT's tables of relative positions, at the stem, are used inside its blocks; EfficientViM's norms after the
# stages feed the head directly.
BESIDE_THE_CHAIN = ("timm/coat", "timm/efficientvim")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TIMM, *TORCHVISION])
def test_every_architecture(name: str) -> None:
    """One test of three things, as to build a network takes longest."""
    built = build_on_meta(name)
    check_head(built)
    check_forward(built, "meta")
    check_end(built, name)
    if not name.startswith(BESIDE_THE_CHAIN):
        depths, known = check_forward_order(built.module, built.head, built.processor.preprocess.size)
        assert max(depths.values()) >= 4 and len(known) >= 4


def check_end(built: BuiltModel, name: str) -> None:
    """The network ends with its head, but for the families that do not."""
    assert (built.head_path is None) == (_family(name) in WITHOUT)
    if built.head_path is None:
        return
    images = torch.zeros(2, 3, *built.processor.preprocess.size, device="meta")
    with torch.no_grad():
        found = features(built.module.eval(), built.head_path, call_with_images, {"image": images})
        made = head_module(built.module, built.head_path)(found)
        assert made.shape == built.module(images).shape == (2, OUTPUTS)
