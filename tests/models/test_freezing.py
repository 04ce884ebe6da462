"""What freezing freezes: names, gradients, statistics and masks; and which requests are refused."""

import re
from itertools import pairwise

import pytest
import torch
import torchvision
from timm.layers import BatchNormAct2d, SyncBatchNormAct
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ddp_ft.distributed.ddp import Trainee, replicate
from ddp_ft.errors import UserError
from ddp_ft.models import build_model
from ddp_ft.models.batch_norm import prepare_batch_norm
from ddp_ft.models.freezing import Stage, TrainingMode, freeze_parameters, frozen_names, frozen_table, unfreeze_plan
from ddp_ft.models.libraries.base import call_with_images
from tests.models.test_build import build_on_meta
from tests.support import nets
from tests.support.ranks import run_ranks

FAMILIES = ["timm/test_resnet", "timm/test_vit", "timm/test_nfnet", "torchvision/resnet18", "torchvision/vit_b_32"]
Named = tuple[nn.Module, frozenset[str]]


@pytest.fixture(scope="module")
def build():
    made = {}

    def get(name: str) -> Named:
        if name not in made:
            built = build_on_meta(name)
            made[name] = built.module, built.head
        return made[name]

    return get


@pytest.fixture(scope="module")
def resnet(build) -> Named:
    return build("timm/test_resnet")


@pytest.fixture(scope="module")
def vit(build) -> Named:
    return build("timm/test_vit")


def all_names(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_parameters()}


def tops(names) -> set[str]:
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_kind_of_parts(build, name) -> None:
    module, head = build(name)
    names = all_names(module)
    assert frozen_names(module, head, "none") == frozenset()
    assert frozen_names(module, head, "backbone") == names - head
    stages = [frozen_names(module, head, f"stages:{count}") for count in range(4)]
    for before, after in pairwise(stages):
        assert before < after
    assert not stages[3] & head
    convolutions = frozen_names(module, head, "type:Conv2d")
    assert convolutions and all(dict(module.named_parameters())[each].ndim in (1, 4) for each in convolutions)
    by_name = frozen_names(module, head, r"regex:\.bias$")
    assert by_name == {each for each in names if each.endswith(".bias")}
    assert frozen_names(module, head, "stages:1 + type:Conv2d+regex:a+b|bias$") == stages[1] | convolutions | {
        each for each in names if each.endswith("bias") or re.search("a+b", each)
    }


def test_stages_of_a_residual_network(resnet) -> None:
    assert tops(frozen_names(*resnet, "stages:0")) == {"conv1", "bn1"}
    assert tops(frozen_names(*resnet, "stages:2")) == {"conv1", "bn1", "layer1", "layer2"}
    assert frozen_names(*resnet, "stages:4") == frozen_names(*resnet, "backbone")
    assert frozen_names(*resnet, "stages:-1") == frozen_names(*resnet, "stages:3")
    assert frozen_names(*resnet, "stages:-0") == frozen_names(*resnet, "backbone")


def test_stages_of_a_transformer_are_its_blocks(vit) -> None:
    frozen = frozen_names(*vit, "stages:2")
    assert {name for name in frozen if name.startswith("blocks.")} == {
        name for name in all_names(vit[0]) if re.match(r"blocks\.[01]\.", name)
    }
    assert {"cls_token", "pos_embed"} < frozen


@pytest.mark.parametrize(
    "name",
    [
        "timm/test_resnet",
        "timm/test_vit",
        "timm/convnextv2_atto",  # LayerNorm2d and GlobalResponseNorm
        "timm/test_byobnet",  # a norm and its activation in one
        "torchvision/convnext_tiny",
    ],
)
def test_norms_of_any_class(build, name) -> None:
    """In these models they are all modules whose parameters are vectors alone."""
    module, head = build(name)
    vectors = {
        f"{path}.{name}"
        for path, each in module.named_modules()
        if all(parameter.ndim == 1 for parameter in each.parameters(recurse=False))
        for name, _ in each.named_parameters(recurse=False)
    }
    assert vectors and frozen_names(module, head, "norm") == vectors


class RMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))


class NormedLinear(nn.Linear):
    pass


class OwnConv(nn.Conv2d):
    pass


def own() -> nn.Module:
    return nn.Sequential(OwnConv(3, 4, 1), RMSNorm(), nn.GroupNorm(2, 4), NormedLinear(4, 4), nn.Linear(4, 2))


OWN_HEAD = {"4.weight", "4.bias"}


def test_own_classes() -> None:
    assert frozen_names(own(), OWN_HEAD, "norm") == {"1.scale", "2.weight", "2.bias"}
    assert frozen_names(own(), OWN_HEAD, "type:Conv2d") == {"0.weight", "0.bias"}
    assert frozen_names(own(), OWN_HEAD, "type:Linear") == {"3.weight", "3.bias", "4.weight", "4.bias"}


def test_type_means_the_whole_of_a_block(vit) -> None:
    assert tops(frozen_names(*vit, "type:Block")) == {"blocks"}
    assert len(frozen_names(*vit, "type:Block")) == sum(name.startswith("blocks.") for name in all_names(vit[0]))


def test_a_shared_parameter_is_frozen_by_either_of_its_places() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Conv2d(3, 4, 1), nn.Linear(4, 4))
    module[1].bias = module[0].bias
    assert frozen_names(module, {"2.weight"}, "type:Conv2d") == {"0.bias", "1.weight"}


@pytest.mark.parametrize(
    ("parts", "said", "hint"),
    [
        ("backbon", "'backbon' is unknown", "Did you mean backbone?"),
        ("stage:2", "'stage:2' is unknown", "Did you mean stages:"),
        ("none:1", "'none:1' is unknown", "none"),
        ("stages", "'stages' is unknown", "Did you mean stages:"),
        ("", "'' is unknown", "Expected none, backbone"),
        ("norm+", "'' is unknown", "Expected none, backbone"),
        ("stages:two", "from -4 to 4", "4 stages"),
        ("stages:", "from -4 to 4", "4 stages"),
        ("stages:-5", "from -4 to 4", "4 stages"),
        ("stages:1.5", "from -4 to 4", "4 stages"),
        ("stages:5", "from -4 to 4 after 'stages:', not '5'", "4 stages"),
        ("stages:" + "9" * 5000, "from -4 to 4", "4 stages"),
        ("type:Conv2D", "means no parameter", "Did you mean Conv2d"),
        ("type:", "means no parameter", "--layers"),
        ("type:ReLU", "means no parameter", "of that class have no parameters"),
        ("regex:blocks", "regex:blocks means no parameter", "conv1"),
        ("regex:layer(", "'layer(' is no regular expression", "re.search"),
        ("regex:", "freezes every parameter", "Leave out the head"),
        ("backbone+regex:^fc", "freezes every parameter", "Leave out the head"),
        ("type:ResNet", "freezes every parameter", "Leave out the head"),
        ("none+nrom", "'nrom' is unknown", "Did you mean norm"),
    ],
)
def test_refused_parts(resnet, parts, said, hint) -> None:
    with pytest.raises(UserError) as caught:
        frozen_names(*resnet, parts)
    assert said in caught.value.message and hint in caught.value.hint


def test_refused_where_there_is_nothing_of_the_kind() -> None:
    with pytest.raises(UserError, match="norm means no parameter"):
        frozen_names(nets.plain(), {"6.weight", "6.bias"}, "norm")
    with pytest.raises(UserError, match="backbone means no parameter"):
        frozen_names(nn.Linear(3, 2), {"weight", "bias"}, "backbone")
    with pytest.raises(UserError, match="no stages that follow a stem"):
        frozen_names(nn.Sequential(nn.Conv2d(3, 2, 1), nn.Linear(2, 2)), {"1.weight", "1.bias"}, "stages:99")


def test_freezing_and_freeing() -> None:
    module = nets.with_batch_norm()
    module.register_parameter("count", nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False))
    freeze_parameters(module, {"0.weight", "1.bias"})
    learning = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert learning == all_names(module) - {"0.weight", "1.bias", "count"}
    freeze_parameters(module, ())
    assert all(parameter.requires_grad for name, parameter in module.named_parameters() if name != "count")


def test_plan_without_a_schedule(resnet) -> None:
    module, head = resnet
    assert unfreeze_plan(None, "backbone", module, head) == [Stage(0, "backbone", all_names(module) - head)]
    assert unfreeze_plan(None, "none", module, head) == [Stage(0, "none", frozenset())]


def test_plan_with_a_schedule(resnet) -> None:
    plan = unfreeze_plan({"0": "backbone", "2": "stages:2", "10": "none"}, "none", *resnet)
    assert [(stage.epoch, stage.parts) for stage in plan] == [(0, "backbone"), (2, "stages:2"), (10, "none")]
    assert plan[0].frozen > plan[1].frozen > plan[2].frozen == frozenset()
    assert plan[1].frozen == frozen_names(*resnet, "stages:2")


@pytest.mark.parametrize(
    ("schedule", "said", "hint"),
    [
        ({}, "no entry for epoch 0", "{0: backbone"),
        ({"1": "none"}, "no entry for epoch 0", "{0: backbone"),
        ({"2": "backbone", "0": "none"}, "out of order: 2, 0", "rising"),
        ({"0": "backbone", "00": "none"}, "out of order: 0, 0", "rising"),
        ({"-1": "backbone", "0": "none"}, "not '-1'", "{0: backbone"),
        ({"0.5": "backbone", "0": "none"}, "not '0.5'", "{0: backbone"),
        ({"first": "backbone"}, "not 'first'", "{0: backbone"),
        ({"True": "backbone"}, "not 'True'", "{0: backbone"),
        ({"0": 3}, "epoch 0 has 3; expected a text", "Expected none"),
        ({"0": None}, "epoch 0 has None; expected a text", "Expected none"),
        ({"0": ["backbone"]}, "expected a text", "Expected none"),
        ({"0": "backbone", "1": "stages:9"}, "epoch 1: freeze.parts: expected a number from -4 to 4", "4 stages"),
        ({"0": "none", "1": "backbone"}, "out of order: epoch 1 (backbone) freezes", "let more of the model learn"),
        ({"0": "stages:2", "1": "stages:1+norm"}, "such as layer3.0.bn1.bias", "let more of the model learn"),
    ],
)
def test_refused_schedules(resnet, schedule, said, hint) -> None:
    with pytest.raises(UserError) as caught:
        unfreeze_plan(schedule, "none", *resnet)
    assert said in caught.value.message and hint in caught.value.hint


def test_a_schedule_and_parts_are_one_too_many(resnet) -> None:
    with pytest.raises(UserError, match=r"Both freeze\.schedule and freeze\.parts = norm"):
        unfreeze_plan({"0": "backbone"}, "norm", *resnet)


def _statistics(module: nn.Module) -> dict[str, torch.Tensor]:
    found = {name: layer for name, layer in module.named_modules() if isinstance(layer, _BatchNorm)}
    return {name: torch.cat([layer.running_mean, layer.running_var]).clone() for name, layer in found.items()}


def _moved(module: nn.Module, mode: TrainingMode) -> set[str]:
    """The batch norm layers whose statistics change in two forward passes."""
    before = _statistics(module)
    for _ in range(2):
        mode()
        module(torch.randn(4, 3, 32, 32))
    return {name for name, value in _statistics(module).items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize(
    ("parts", "batch_norm", "moving"),
    [
        ("none", "train", r".*"),
        ("stages:2", "train", r"layer[34].*"),
        ("backbone", "train", None),
        ("norm", "train", None),
        ("none", "frozen", None),
        ("type:Conv2d", "train", r".*"),
        (r"regex:^layer1\.0\.bn1", "train", r"(?!layer1\.0\.bn1$).*"),
        (r"regex:^layer1\.0\.bn1.bias", "train", r".*"),
    ],
)
def test_statistics_of_frozen_parts_stay(parts, batch_norm, moving) -> None:
    torch.manual_seed(0)
    built = build_model("timm/test_resnet", 3)
    module, head = built.module, built.head
    freeze_parameters(module, frozen_names(module, head, parts))
    module.eval()
    expected = {name for name in _statistics(module) if moving and re.fullmatch(moving, name)}
    assert _moved(module, TrainingMode(module, batch_norm)) == expected


def test_statistics_of_torchvision_stay_too() -> None:
    module = torchvision.models.mobilenet_v3_small(num_classes=3)
    head = {"classifier.3.weight", "classifier.3.bias"}
    freeze_parameters(module, frozen_names(module, head, "stages:4"))
    moved = _moved(module, TrainingMode(module, "train"))
    assert {name.split(".")[1] for name in moved} == {str(number) for number in range(5, 13)}


def _masked() -> nn.Module:
    body = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8))
    return nn.Sequential(body, nn.Dropout(0.5), nn.Linear(8, 2))


def test_dropout_is_off_inside_of_what_is_frozen_and_on_elsewhere() -> None:
    module = _masked()
    freeze_parameters(module, {"0.0.weight", "0.0.bias", "0.2.weight", "0.2.bias"})
    TrainingMode(module, "train")()
    x = torch.ones(4, 8)
    assert torch.equal(module[0](x), module[0](x))
    assert not torch.equal(module[1](x), module[1](x))
    freeze_parameters(module, {"0.0.weight", "0.0.bias"})
    TrainingMode(module, "train")()
    assert not torch.equal(module[0](x), module[0](x))


def test_the_mode_holds_for_a_replica_and_after_an_evaluation() -> None:
    module = nets.with_batch_norm()
    freeze_parameters(module, {"1.weight", "1.bias"})
    holder = nn.DataParallel(module)
    mode = TrainingMode(holder, "train")
    module.eval()
    mode()
    assert holder.training and module.training and not module[1].training and module[4].training


def test_batch_norm_of_one_process_or_of_none_stays() -> None:
    module = nets.with_batch_norm()
    for asked, device, size in (("sync", "cpu", 1), ("sync", "cuda", 1), ("train", "cuda", 4), ("frozen", "cpu", 4)):
        assert prepare_batch_norm(module, asked, device, size) is module
        assert type(module[1]) is nn.BatchNorm2d
    plain = nets.plain()
    assert prepare_batch_norm(plain, "sync", "cpu", 2) is plain


def test_synchronised_batch_norm_needs_cuda() -> None:
    with pytest.raises(UserError, match="SyncBatchNorm does not run on the CPU, and these are 3 processes"):
        prepare_batch_norm(nets.with_batch_norm(), "sync", "cpu", 3)


def test_synchronised_batch_norm_of_torch_and_timm() -> None:
    act = BatchNormAct2d(8, act_layer=nn.ReLU)
    module = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), act, nn.BatchNorm2d(8, affine=False))
    freeze_parameters(module, {"1.weight"})
    parameters, x = dict(module.named_parameters()), torch.randn(4, 3, 5, 5)
    expected, state = module.eval()(x), module.state_dict()
    converted = prepare_batch_norm(module, "sync", "cuda", 2)
    assert [type(layer) for layer in converted] == [
        nn.Conv2d, nn.SyncBatchNorm, SyncBatchNormAct, nn.SyncBatchNorm,
    ]  # fmt: skip
    assert {name: id(p) for name, p in converted.named_parameters()} == {n: id(p) for n, p in parameters.items()}
    assert not converted[1].weight.requires_grad and converted[1].bias.requires_grad
    assert list(converted.state_dict()) == list(state)
    assert torch.equal(converted(x), expected)  # with timm's ReLU


def test_table_of_what_learns(resnet) -> None:
    module, head = resnet
    sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
    total = sum(sizes.values())
    assert frozen_table(module, frozenset()) == {"trainable": f"{total:,} of {total:,} parameters"}
    frozen = frozen_names(module, head, "stages:1+regex:^layer3.0.conv1")
    rows = frozen_table(module, frozen)
    held = sum(sizes[name] for name in frozen)
    layer3 = sum(size for name, size in sizes.items() if name.startswith("layer3"))
    assert list(rows) == ["trainable", "  conv1 ... layer1", "  layer2", "  layer3", "  layer4 ... fc"]
    assert rows["trainable"] == f"{total - held:,} of {total:,} parameters"
    conv = sizes["layer3.0.conv1.weight"]
    assert rows["  layer3"] == f"{conv:,} frozen, {layer3 - conv:,} trainable"
    assert rows["  conv1 ... layer1"] == f"{held - conv:,} frozen"


HEAD = {"9.weight", "9.bias"}
SAMPLES = 6


def _train_by_stages(world):
    """Weights at the start and after each of two stages of two steps, in which more and more learns."""
    torch.manual_seed(0)
    module = nets.with_batch_norm()
    x, y = torch.randn(SAMPLES, 3, 16, 16), torch.arange(SAMPLES) % 3
    share = slice(world.rank * SAMPLES // world.size, (world.rank + 1) * SAMPLES // world.size)
    seen = [{name: p.detach().clone() for name, p in module.named_parameters()}]
    # Frozen batch norm and no dropout: the same on any number of processes.
    for stage in unfreeze_plan({"0": "stages:1+norm", "2": "norm"}, "none", module, HEAD):
        freeze_parameters(module, stage.frozen)
        mode = TrainingMode(module, "frozen")
        replica = replicate(Trainee(module, call_with_images), world, distributed=True)
        learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(learning, lr=0.5)
        for _ in range(2):
            mode()
            module[8].eval()
            optimizer.zero_grad()
            torch.autograd.backward(
                nn.functional.cross_entropy(replica({"image": x[share]}), y[share], reduction="sum") / SAMPLES
            )
            optimizer.step()
        seen.append({name: p.detach().clone() for name, p in module.named_parameters()})
    return seen


def _changed(before, after) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_ddp_on_a_partly_frozen_model() -> None:
    """Without find_unused_parameters, which would search the graph in every step."""
    alone = run_ranks(1, _train_by_stages)[0]
    convolutions = {"0.weight", "0.bias", "3.weight", "3.bias"}
    for world_size in (1, 2, 3):
        for start, middle, end in run_ranks(world_size, _train_by_stages):
            assert _changed(start, middle) == HEAD
            assert _changed(middle, end) == HEAD | convolutions
            for name, value in end.items():
                torch.testing.assert_close(value, alone[2][name], rtol=1e-4, atol=1e-6)


def _step_with_a_prefix(world, frozen):
    """Bytes that DDP reduces, whether the first three outputs ask for a gradient, and shapes that autograd keeps."""
    module, kept, asking = nets.plain(), [], []
    freeze_parameters(module, frozenset(frozen))
    replica = replicate(Trainee(module, call_with_images), world, distributed=True)
    for layer in module[:3]:
        layer.register_forward_hook(lambda _, __, outputs: asking.append(outputs.requires_grad))
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tuple(tensor.shape)) or tensor, lambda t: t
    ):
        replica({"image": torch.randn(5, 3, 16, 16)}).sum().backward()
    return replica._get_ddp_logging_data()["total_parameter_size_bytes"], asking, kept


def test_a_frozen_prefix_has_neither_a_graph_nor_a_place_in_the_buckets() -> None:
    sizes = {name: 4 * parameter.numel() for name, parameter in nets.plain().named_parameters()}
    images, inside = (5, 3, 16, 16), (5, 8, 7, 7)
    for frozen, keeps_images in ((set(), True), ({"0.weight", "0.bias"}, False)):
        for size, asking, kept in run_ranks(2, _step_with_a_prefix, frozen):
            assert size == sum(bytes_ for name, bytes_ in sizes.items() if name not in frozen)
            assert asking == [keeps_images, keeps_images, True]
            assert (images in kept) == keeps_images and inside in kept
