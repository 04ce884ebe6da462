"""Networks cut into what computes features and the head: together they are the network, to the bit."""

from collections.abc import Callable

import pytest
import torch

from ddp_ft.config.schema import HeadConfig
from ddp_ft.contracts import BuiltModel
from ddp_ft.data.image.processor import ImageProcessor
from ddp_ft.models import build_model
from ddp_ft.models.backbone import features, head_module
from ddp_ft.models.introspection import Trial, find_head
from ddp_ft.models.libraries.base import call_with_images
from tests.support import nets
from tests.support.trained import PREPROCESS

OUTPUTS = 5
# The name of each model's head; among them a convolution as head, a normed one, and dropouts of all kinds.
PATHS = {
    "timm/test_resnet": "fc", "timm/test_efficientnet": "classifier", "timm/test_vit": "head",
    "timm/test_convnext": "head.fc", "timm/test_nfnet": "head.fc", "timm/test_vit_relpos": "head",
    "timm/test_byobnet": "head.fc", "timm/resnetv2_18": "head.fc", "timm/repvit_m1": "head",
    "torchvision/mobilenet_v2": "classifier.1", "torchvision/resnet18": "fc", "torchvision/vit_b_32": "heads.head",
    f"{nets.THIS_FILE}:plain": "6", f"{nets.THIS_FILE}:with_batch_norm": "9",
}  # fmt: skip
LARGE = {"torchvision/vit_b_32", "timm/repvit_m1"}
SIDE = {"timm/resnetv2_18": 64, "torchvision/mobilenet_v2": 64, "torchvision/resnet18": 64}  # pixels, to be quick
HEADLESS = ["torchvision/squeezenet1_1", "timm/deit_tiny_distilled_patch16_224", "timm/efficientformer_l1"]
HEADS = ["linear", "mlp:6,4"]


def _images(built: BuiltModel) -> torch.Tensor:
    images = torch.rand(3, 3, *built.processor.preprocess.size, generator=torch.Generator().manual_seed(1))
    return images * torch.tensor([0.1, 1.0, 10.0])[:, None, None, None]


@torch.no_grad()
def _check_split(built: BuiltModel, images: torch.Tensor) -> None:
    assert built.head_path is not None
    module = built.module.eval()
    head = head_module(module, built.head_path)
    found = features(module, built.head_path, call_with_images, {"image": images})
    whole = module(images)
    assert whole.shape == (len(images), OUTPUTS) and torch.equal(head(found), whole)
    assert not torch.equal(found[0], found[2]), "the features do not depend on the images"
    named = {f"{built.head_path}.{name}" for name, _ in module.get_submodule(built.head_path).named_parameters()}
    assert built.head <= named


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in PATHS]
)
def test_head_of_features_is_the_network(name: str) -> None:
    built = build_model(name, OUTPUTS, SIDE.get(name))
    assert built.head_path == PATHS[name]
    _check_split(built, _images(built))


@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/test_vit", "timm/resnetv2_18"])
def test_features_of_a_replaced_head(name: str) -> None:
    built = build_model(name, OUTPUTS, SIDE.get(name), head=HeadConfig(name="mlp:6,4", norm="batch", dropout=0.5))
    assert built.head_path == PATHS[name]
    _check_split(built, _images(built))


@pytest.mark.parametrize("name", HEADLESS)
def test_network_that_goes_on_behind_its_head_has_no_path(name: str) -> None:
    assert build_model(name, OUTPUTS).head_path is None


BEHIND = """class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(3, num_classes)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        x = x.mean((2, 3))
        return {}

make = Net"""


@pytest.mark.parametrize(
    ("returned", "path"),
    [
        ("self.fc(x)", "fc"),
        ("self.fc(x[:, None]).squeeze(1)", "fc"),
        ("self.fc(x) * self.scale", None),  # equal at the start, and no longer when scale has learned
        ("self.fc(x).mul_(1.0)", None),
        ("self.fc(x) + self.fc(x)", None),
        ("[self.fc(x), self.fc(x)][1]", None),
        ("[self.fc(x), self.fc(x)][0]", None),
        ("self.fc(input=x)", None),
        ("self.fc(x).t()", None),
        ("self.fc(x)[:, :2]", None),
        ("self.fc(x[:, None].expand(-1, 4, -1))[:, 0]", None),
        ("{'logits': self.fc(x)}", "fc"),
        ("(1 / 0, self.fc(x))", None),
    ],
)
def test_which_networks_end_with_their_head(
    factory_file: Callable[[str], str], returned: str, path: str | None
) -> None:
    assert build_model(factory_file(BEHIND.format(returned)), OUTPUTS).head_path == path


def test_head_of_a_network_that_runs_with_real_tensors_only(factory_file: Callable[[str], str]) -> None:
    returned = "self.fc(x) if x.sum().item() > -1e9 else x"
    assert build_model(factory_file(BEHIND.format(returned)), OUTPUTS).head_path == "fc"


def test_search_for_the_head_leaves_no_mark() -> None:
    torch.manual_seed(0)
    module = nets.with_batch_norm(OUTPUTS)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    drawn = torch.get_rng_state()
    trial = Trial(ImageProcessor(PREPROCESS), call_with_images)
    assert find_head([(module, trial)], {"9.weight", "9.bias"}) is not None
    assert torch.equal(torch.get_rng_state(), drawn) and module.training
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_features_in_training_mode_do_not_run_the_head() -> None:
    built = build_model(f"{nets.THIS_FILE}:with_batch_norm", OUTPUTS, head=HeadConfig(name="mlp:6", norm="batch"))
    assert built.head_path == "9"
    head = built.module.get_submodule("9")
    before = [tensor.clone() for tensor in head.buffers()]
    found = features(built.module.train(), "9", call_with_images, {"image": torch.rand(8, 3, 16, 16)})
    assert found.requires_grad and found.shape == (8, 16)
    assert all(torch.equal(old, new) for old, new in zip(before, head.buffers(), strict=True))
    assert built.module[1].num_batches_tracked == 1, "the network itself is in training mode"
    assert not head._forward_pre_hooks


def test_features_leave_no_hook_behind_when_the_network_fails() -> None:
    module = nets.plain(OUTPUTS)
    with pytest.raises(RuntimeError):
        features(module, "6", call_with_images, {"image": torch.rand(2, 5, 16, 16)})
    assert not module[6]._forward_pre_hooks


@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/test_vit", "timm/resnetv2_18"])
@pytest.mark.parametrize("head", HEADS)
def test_features_under_autocast_and_channels_last(name: str, head: str) -> None:
    built = build_model(name, OUTPUTS, SIDE.get(name), head=HeadConfig(name=head))
    built.module.to(memory_format=torch.channels_last)
    images = _images(built).contiguous(memory_format=torch.channels_last)
    _check_split(built, images)
    with torch.autocast("cpu", torch.bfloat16):
        _check_split(built, images)


def test_head_trained_on_features_is_the_network_trained() -> None:
    built = build_model("timm/test_resnet", OUTPUTS)
    module, images = built.module.eval(), _images(built)
    with torch.no_grad():
        found = features(module, "fc", call_with_images, {"image": images})
    head = head_module(module, "fc")
    head(found).square().sum().backward()
    of_head = module.fc.weight.grad.clone()
    module.zero_grad()
    module(images).square().sum().backward()
    assert torch.equal(of_head, module.fc.weight.grad)
    assert {id(each) for each in head.parameters()} == {id(each) for each in module.fc.parameters()}
