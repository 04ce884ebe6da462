"""Depths and stages follow the forward pass in any architecture."""

from collections.abc import Callable, Collection
from itertools import pairwise

import pytest
import timm
import timm.optim
import torch
import torchvision
from torch import nn

from ddp_ft.models.blocks import block_depths, stages
from tests.models.test_build import build_on_meta
from tests.support import nets


def on_meta(name: str) -> tuple[nn.Module, frozenset[str], tuple[int, int]]:
    """The module without its weights, the names of its head, and the size of its images."""
    built = build_on_meta(name)
    return built.module, built.head, built.processor.preprocess.size


def forward_order(module: nn.Module, size: tuple[int, int]) -> dict[str, int]:
    """When each module with parameters of its own is first called; one that holds others, before them."""
    order: dict[str, int] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda *_: order.update({name: order.get(name, len(order))})

    for name, each in module.named_modules():
        if name and not any(True for _ in each.children()) and any(True for _ in each.parameters(recurse=False)):
            each.register_forward_pre_hook(note(name))
    with torch.no_grad():
        module.eval()(torch.zeros(2, 3, *size, device="meta"))
    return order


def late(depths: dict[str, int], order: dict[str, int]) -> list[str]:
    """The parameters that are deeper than those of a module called after their own."""
    called = sorted((order[module], depth, name) for name, depth in depths.items() if (module := owner(name)) in order)
    deepest, found = -1, []
    for _, depth, name in called:
        found += [name] if depth < deepest else []
        deepest = max(deepest, depth)
    return found


def owner(name: str) -> str:
    return name.rpartition(".")[0]


def check(module: nn.Module, head: Collection[str]) -> tuple[dict[str, int], list[list[str]]]:
    names = [name for name, _ in module.named_parameters()]
    depths, known = block_depths(module, head), stages(module, head)
    assert list(depths) == names
    assert {name for name, depth in depths.items() if depth == max(depths.values())} >= set(head)
    assert sorted(set(depths.values())) == list(range(max(depths.values()) + 1))
    assert sorted(name for stage in known for name in stage) == sorted(set(names) - set(head))
    assert all(known)
    return depths, known


def check_forward_order(
    module: nn.Module, head: Collection[str], size: tuple[int, int]
) -> tuple[dict[str, int], list[list[str]]]:
    depths, known = check(module, head)
    order = forward_order(module, size)
    assert len(order) > 5
    assert late(depths, order) == []
    assert late({name: number for number, stage in enumerate(known) for name in stage}, order) == []
    return depths, known


@pytest.mark.parametrize(
    ("name", "blocks", "expected_stages"),
    [
        ("torchvision/resnet18", 8, 4),
        ("torchvision/convnext_tiny", 18, 4),
        pytest.param("torchvision/efficientnet_b0", 16, 7, marks=pytest.mark.slow),
        pytest.param("torchvision/efficientnet_v2_s", 40, 6, marks=pytest.mark.slow),
        pytest.param("torchvision/mobilenet_v2", 17, 17, marks=pytest.mark.slow),
        ("torchvision/mobilenet_v3_small", 11, 11),
        pytest.param("torchvision/swin_t", 12, 4, marks=pytest.mark.slow),
        ("torchvision/vit_b_32", 12, 12),
        pytest.param("torchvision/densenet121", 58, 4, marks=pytest.mark.slow),
        pytest.param("torchvision/regnet_y_400mf", 16, 4, marks=pytest.mark.slow),
        pytest.param("torchvision/maxvit_t", 11, 4, marks=pytest.mark.slow),
        pytest.param("torchvision/googlenet", 9, 9, marks=pytest.mark.slow),
        pytest.param("torchvision/squeezenet1_1", 8, 8, marks=pytest.mark.slow),
        ("torchvision/shufflenet_v2_x0_5", 16, 3),
        ("torchvision/vgg11_bn", 9, 9),
        ("timm/resnet10t", 4, 4),
        ("timm/test_vit", 6, 6),
        pytest.param("timm/convnext_atto", 12, 4, marks=pytest.mark.slow),
        pytest.param("timm/tf_efficientnet_lite0", 16, 7, marks=pytest.mark.slow),
        pytest.param("timm/swin_s3_tiny_224", 12, 4, marks=pytest.mark.slow),
        # timm lets the last two overlap with others.
        pytest.param("timm/cait_xxs24_224", 26, 26, marks=pytest.mark.slow),
        ("timm/pit_ti_224", 14, 3),  # has no matcher
        pytest.param("timm/rdnet_tiny", 7, 7, marks=pytest.mark.slow),  # has none of stages
    ],
)
def test_family(name: str, blocks: int, expected_stages: int) -> None:
    depths, known = check_forward_order(*on_meta(name))
    assert (max(depths.values()) - 1, len(known) - 1) == (blocks, expected_stages)


def test_stages_of_a_residual_network() -> None:
    module, head, _ = on_meta("torchvision/resnet18")
    assert [{name.partition(".")[0] for name in stage} for stage in stages(module, head)] == [
        {"conv1", "bn1"}, {"layer1"}, {"layer2"}, {"layer3"}, {"layer4"},
    ]  # fmt: skip


def test_the_stem_of_a_transformer_has_its_tables_and_the_last_stage_its_norm() -> None:
    module, head, _ = on_meta("torchvision/vit_b_32")
    stem, *_, last = stages(module, head)
    assert set(stem) == {"class_token", "conv_proj.weight", "conv_proj.bias", "encoder.pos_embedding"}
    assert {owner(name) for name in last if ".layers." not in name} == {"encoder.ln"}
    depths = block_depths(module, head)
    assert depths["encoder.ln.weight"] == depths["heads.head.weight"] == 13
    assert depths["encoder.layers.encoder_layer_11.mlp.0.weight"] == 12


@pytest.mark.parametrize("name", ["resnet10t", "test_vit", "convnext_atto"])
def test_rates_are_those_of_timm(name: str) -> None:
    module = timm.create_model(name, num_classes=3)
    head = {name for name, parameter in module.named_parameters() if parameter.shape[0] == 3 and "head" in name}
    head |= {name for name, _ in module.named_parameters() if name.startswith("fc.")}
    depths = block_depths(module, head)
    scales = {
        id(parameter): group["lr_scale"]
        for group in timm.optim.param_groups_layer_decay(module, layer_decay=0.5)
        for parameter in group["params"]
    }
    for path, parameter in module.named_parameters():
        assert 0.5 ** (max(depths.values()) - depths[path]) == pytest.approx(scales[id(parameter)]), path


class Block(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))


class Stage(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.down = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(3, 4))
        self.first, self.second, self.norm = Block(), Block(), nn.LayerNorm(4)


class Own(nn.Module):
    """Parts by name, in their order, and a head."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.head = nn.Linear(4, 2)


HEAD = {"head.weight", "head.bias"}


def depths_by(module: nn.Module, *prefixes: str) -> list[set[int]]:
    depths, _ = check(module, HEAD)
    return [{depth for name, depth in depths.items() if name.startswith(prefix)} for prefix in prefixes]


def test_own_model_with_stages() -> None:
    module = Own(stem=nn.Linear(4, 4), body=nn.ModuleList(Stage(n) for n in (1, 2, 1)), norm=nn.LayerNorm(4))
    found = depths_by(module, "stem", "body.0", "body.1.down", "body.1.blocks.0", "body.1.blocks.1", "body.2", "norm")
    assert found == [{0}, {0, 1}, {2}, {2}, {3}, {4}, {5}]
    assert [name for name in stages(module, HEAD)[2] if "down" in name] == ["body.1.down.weight", "body.1.down.bias"]
    assert len(stages(module, HEAD)) == 4


def test_own_model_with_an_encoder() -> None:
    module = Own(embed=nn.Linear(4, 4), encoder=Encoder(), neck=nn.Linear(4, 4))
    found = depths_by(module, "embed", "encoder.table", "encoder.first", "encoder.second", "encoder.norm", "neck")
    assert found == [{0}, {0}, {1}, {2}, {3}, {3}]


def test_own_model_round_a_known_one() -> None:
    backbone = torchvision.models.shufflenet_v2_x0_5(num_classes=4)
    depths, known = check(Own(backbone=backbone), HEAD)
    assert max(depths.values()) == 17 and len(known) == 4
    assert depths["backbone.conv1.0.weight"] == 0 and depths["backbone.fc.weight"] == depths["head.weight"]


def test_a_stem_of_several_convolutions_is_no_block() -> None:
    stem = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    assert depths_by(Own(stem=stem, body=nn.Sequential(Block(), Block(), Block())), "stem", "body.0") == [{0}, {1}]


def test_a_network_without_blocks_has_its_layers() -> None:
    depths, known = check(nets.with_batch_norm(), {"9.weight", "9.bias"})
    assert depths == {
        "0.weight": 0, "0.bias": 0, "1.weight": 0, "1.bias": 0, "3.weight": 1, "3.bias": 1, "4.weight": 2, "4.bias": 2,
        "9.weight": 2, "9.bias": 2,
    }  # fmt: skip
    assert len(known) == 2


def test_a_shared_parameter_counts_where_it_is_first() -> None:
    module = Own(stem=nn.Linear(4, 4), body=nn.Sequential(Block(), Block(), Block()))
    module.body[2].norm = module.body[0].norm
    assert depths_by(module, "body.0.norm", "body.2") == [{1}, {3}]


def test_a_model_that_is_all_head() -> None:
    module = nn.Linear(3, 2)
    assert block_depths(module, {"weight", "bias"}) == {"weight": 1, "bias": 1}
    assert stages(module, {"weight", "bias"}) == [[]]


class Matched(Own):
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        return {"stem": "^c", "blocks": r"^[ab](\d)"}


class Unmatched(Own):
    def group_matcher(self) -> dict[str, str]:
        raise RuntimeError


def test_own_matcher_has_the_last_word() -> None:
    parts = {name: nn.Linear(4, 4) for name in ("b2", "a1", "c", "b3")}
    assert depths_by(Matched(**parts), "c", "a1", "b2", "b3") == [{0}, {1}, {2}, {3}]


def test_own_matcher_that_fails_is_not_asked() -> None:
    body = nn.Sequential(Block(), Block())
    assert depths_by(Unmatched(stem=nn.Linear(4, 4), body=body), "stem", "body.0", "body.1") == [{0}, {1}, {2}]


def test_stages_rise_with_depth() -> None:
    module, head, _ = on_meta("timm/convnext_atto")
    depths = block_depths(module, head)
    for before, after in pairwise(stages(module, head)):
        assert max(depths[name] for name in before) < min(depths[name] for name in after)
