"""Layers with an adapter: nothing changes at first, what is merged computes the same, and what cannot have one."""

import pytest
import torch
from torch import nn

from ddp_ft.errors import UserError
from ddp_ft.models import build_model, create_from_spec
from ddp_ft.models.adapter_names import is_adapter
from ddp_ft.models.adapters.inject import adapted_stages, without_unreached
from ddp_ft.models.adapters.layers import relative
from ddp_ft.models.adapters.tensors import digest_of_base, merged
from ddp_ft.models.freezing import freeze_parameters, unfreeze_plan
from ddp_ft.models.introspection import Trial
from ddp_ft.models.rehearsal import rehearse
from tests.models.adapters.nets import IMAGES, adapted, around, moved, of_library
from tests.support.marks import slowly

# Linear layers, convolutions, attention's own projections.
MODELS = ["timm/test_vit", "timm/test_efficientnet", *slowly("torchvision/vit_b_16", "timm/test_convnext")]


def outputs(built, module=None):
    size = built.processor.preprocess.size
    images = nn.functional.interpolate(IMAGES, size)
    with torch.no_grad():
        return (module or built.module)(images)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_merged_model_computes_the_same(name, dora):
    if dora and name == "torchvision/vit_b_16":
        pytest.skip("attention takes no DoRA")
    built = of_library(name, dora=dora)
    plain = create_from_spec(built.spec).eval()
    own = {each: tensor for each, tensor in built.module.state_dict().items() if not is_adapter(each)}
    plain.load_state_dict(own)
    torch.testing.assert_close(outputs(built), outputs(built, plain), atol=1e-5, rtol=1e-5)
    changed = outputs(moved(built))
    assert (changed - outputs(built, plain)).abs().max() > 1e-3
    plain.load_state_dict(merged(built.module.state_dict(), built.adapter))
    torch.testing.assert_close(outputs(built, plain), changed, atol=1e-4, rtol=1e-4)


class Everything(nn.Module):
    """All kinds of layers."""

    def __init__(self):
        super().__init__()
        from transformers.pytorch_utils import Conv1D

        self.patches = nn.Conv2d(3, 8, 4, stride=4, padding=1)
        self.sides = nn.Conv1d(8, 8, 3, padding=1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.transposed = Conv1D(12, 8)
        self.grouped = nn.Conv1d(12, 12, 3, groups=2)
        self.head = nn.Linear(12, 3)

    def forward(self, images):
        tokens = self.sides(self.patches(images).flatten(2)).transpose(1, 2)
        mixed = self.transposed((self.attention(tokens, tokens, tokens)[0] + tokens).contiguous())
        return self.head(self.grouped(mixed.transpose(1, 2)).mean(2))


HEAD = frozenset(("head.weight", "head.bias"))


@pytest.mark.parametrize("settings", [{}, {"rslora": True}, {"dora": True}])
def test_all_kinds_of_layers(settings):
    torch.manual_seed(0)
    built = moved(around(Everything(), HEAD, targets=".", **settings))
    kinds = {"patches": "conv", "sides": "conv", "transposed": "transposed"}
    assert built.adapter.layers == (kinds if settings.get("dora") else {**kinds, "attention": "attention"})
    assert "groups" in built.adapter.left_out["grouped"]
    plain = Everything().eval()
    plain.load_state_dict(merged(built.module.state_dict(), built.adapter))
    for grad in (True, False):  # without it attention takes a fast path of its own
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(plain(IMAGES), built.module(IMAGES), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"dora": True}])
def test_a_replica_computes_the_same(settings):
    """As torch.nn.parallel.replicate makes it, whose weights are tensors and no parameters."""
    built = moved(around(Everything(), HEAD, targets=".", **settings))
    replicas = {module: module._replicate_for_data_parallel() for module in built.module.modules()}
    for module, replica in replicas.items():
        for name, child in module._modules.items():
            setattr(replica, name, child and replicas[child])
        for name, parameter in module._parameters.items():
            if parameter is None:
                replica._parameters[name] = None
            else:
                setattr(replica, name, parameter.detach().clone())
    torch.testing.assert_close(replicas[built.module](IMAGES), built.module(IMAGES))


@pytest.mark.parametrize(
    ("settings", "scaling"),
    [({}, 2), ({"rank": 4}, 2), ({"alpha": 1}, 0.5), ({"rank": 4, "alpha": 6, "rslora": True}, 3), ({"dora": True}, 2)],
)
def test_what_the_settings_change(settings, scaling):
    layer = around(nn.Sequential(nn.Linear(6, 4)), **settings).module[0]
    assert layer.lora_A.weight.shape == (settings.get("rank", 2), 6) and layer.scaling == scaling
    assert (layer.lora_magnitude_vector is not None) == settings.get("dora", False)


def test_gradients_are_those_of_the_weights_themselves():
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(6, 4))
    built = moved(around(layer, alpha=6))
    values, wanted = torch.randn(5, 6), torch.randn(5, 4)
    (built.module(values) - wanted).square().sum().backward()
    inner = built.module[0]
    whole = (layer[0]._parameters["weight"] + 3 * inner.lora_B.weight @ inner.lora_A.weight).detach().requires_grad_()
    (nn.functional.linear(values, whole, inner.bias) - wanted).square().sum().backward()
    torch.testing.assert_close(inner.lora_B.weight.grad, 3 * whole.grad @ inner.lora_A.weight.T)
    torch.testing.assert_close(inner.lora_A.weight.grad, 3 * inner.lora_B.weight.T @ whole.grad)


def test_dropout_is_of_the_adapters_input_alone():
    built = moved(around(nn.Sequential(nn.Linear(6, 4)), dropout=0.5))
    values = torch.ones(1, 6)
    still = built.module(values)
    built.module.train()
    assert not torch.equal(built.module(values), still)
    nn.init.zeros_(built.module[0].lora_B.weight)
    torch.testing.assert_close(built.module(values), built.module.eval()(values))


def test_the_first_weights_follow_from_the_seed_and_the_layer():
    torch.manual_seed(9)
    one, again, other = of_library("timm/test_vit"), of_library("timm/test_vit"), of_library("timm/test_vit", seed=1)
    torch.manual_seed(10)
    some = of_library("timm/test_vit", targets="blocks.1.attn.qkv")
    first, second, third, fourth = (dict(each.module.named_parameters()) for each in (one, again, other, some))
    name = "blocks.1.attn.qkv.lora_A.weight"
    assert torch.equal(first[name], second[name]) and torch.equal(first[name], fourth[name])
    assert not torch.equal(first[name], third[name])
    assert not torch.equal(first[name], first["blocks.0.attn.qkv.lora_A.weight"])
    assert digest_of_base(one) == digest_of_base(other) != ""


def test_names_of_the_library_stay_and_the_head_has_no_adapter():
    built = of_library("timm/test_vit")
    plain = build_model("timm/test_vit", 5)
    own = [name for name, _ in built.module.named_parameters() if not is_adapter(name)]
    assert own == [name for name, _ in plain.module.named_parameters()]
    assert built.base == set(own) - built.head
    assert not any(path.startswith("head") for path in built.adapter.layers)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.back, self.head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False), nn.Linear(9, 3)
        self.back.weight = self.words.weight
        self.body = nn.Linear(4, 4)

    def forward(self, words):
        return self.head(self.back(self.body(self.words(words))))


def test_tied_weights_are_named_and_left_alone():
    built = around(Tied(), HEAD)
    assert list(built.adapter.layers) == ["body"] and "words.weight" in built.adapter.left_out["back"]
    with pytest.raises(UserError, match=r"back .*tied: its weight is that of words\.weight too"):
        around(Tied(), HEAD, targets="^back")


class Reads(nn.Module):
    """Computes with the weight of a layer that it never calls, as timm's BEiT does."""

    def __init__(self):
        super().__init__()
        self.read, self.called, self.head = nn.Linear(192, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, images):
        values = nn.functional.linear(images.flatten(1), self.read.weight, self.read.bias)
        return self.head(self.called(values))


def test_layers_that_are_not_called_are_left_out():
    built = around(Reads(), HEAD)
    freeze_parameters(built.module, built.base)
    seen = rehearse(built.module.train(), Trial(built.processor, built.call), "mine", False, False)
    left = without_unreached(built, seen.unused)
    assert list(left.adapter.layers) == ["called"] and list(left.adapter.left_out) == ["read"]
    assert type(built.module.read) is nn.Linear and not any("read.lora" in name for name in built.module.state_dict())


@pytest.mark.parametrize(
    ("targets", "expected"),
    [("(", "no regular expression"), ("nowhere", "means no layer"), ("grouped", "groups")],
)
def test_targets_that_mean_nothing(targets, expected):
    with pytest.raises(UserError, match=expected):
        around(Everything(), HEAD, targets=targets)


def test_what_freezing_means():
    built = build_model("timm/test_vit", 5)
    plan = unfreeze_plan({"0": "stages:1", "2": "none"}, "none", built.module, built.head)
    built = adapted(built, 0)
    first, last = adapted_stages(plan, built)
    learning = [{n for n, _ in built.module.named_parameters()} - stage.frozen for stage in (first, last)]
    assert built.head < learning[0] < learning[1]
    assert not any(name.startswith("blocks.0.") for name in learning[0])
    assert all(is_adapter(name) for name in learning[1] - built.head)
    only_head = unfreeze_plan(None, "backbone", built.module, built.head)
    with pytest.raises(UserError, match="--freeze backbone leaves nothing of the adapter to learn"):
        adapted_stages(only_head, built)


def test_outputs_without_a_direction_stay_what_they_are():
    """DoRA divides by the length of each output's weights, which may be 0."""
    assert relative(torch.tensor([0.0, 2.0]), torch.tensor([0.0, 4.0])).tolist() == [1.0, 0.5]
