"""Parameter groups, and every optimizer that timm knows."""

import copy
import importlib.util
import io

import pytest
import timm.optim
import torch
from torch import nn

from ddp_ft.config.loading import make_config
from ddp_ft.errors import UserError
from ddp_ft.training.optim import check_optimizer, extend_groups, make_optimizer, param_groups, set_rates, undecayed
from ddp_ft.training.plan import usual_rate
from tests.support.marks import slowly

HEAD = {"head.weight", "head.bias"}
DEPTHS = {
    "pos_embed": 0, "frozen": 0, "body.weight": 1, "body.bias": 1, "norm.weight": 2, "norm.bias": 2,
    "head.weight": 3, "head.bias": 3,
}  # fmt: skip


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, 4, 8))
        self.frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)
        self.body = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def no_weight_decay(self):
        return {"pos_embed"}


def optim_config(**keys):
    return make_config({"optim.lr": 0.1, **{f"optim.{name}": value for name, value in keys.items()}}).optim


def groups_by_name(**keys):
    module = Tiny()
    config = optim_config(**keys)
    optimizer = make_optimizer(param_groups(module, HEAD, config, DEPTHS), config)
    return module, optimizer, {group["name"]: group for group in optimizer.param_groups}


def names_in(module, group):
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [names[id(parameter)] for parameter in group["params"]]


def test_norms_biases_and_exempt_parameters_are_not_decayed():
    module, _, groups = groups_by_name(weight_decay=0.3)
    assert names_in(module, groups["backbone"]) == ["body.weight"]
    assert names_in(module, groups["backbone_no_decay"]) == ["pos_embed", "body.bias", "norm.weight", "norm.bias"]
    assert (groups["backbone"]["weight_decay"], groups["backbone_no_decay"]["weight_decay"]) == (0.3, 0.0)
    assert undecayed(module) == {"pos_embed", "body.bias", "norm.weight", "norm.bias", "head.bias"}


def test_the_head_learns_faster():
    _, optimizer, groups = groups_by_name(head_lr_scale=5)
    set_rates(optimizer, 0.2)
    assert groups["head"]["lr"] == groups["head_no_decay"]["lr"] == pytest.approx(1.0)
    assert groups["backbone"]["lr"] == pytest.approx(0.2)


def test_frozen_parameters_are_left_out():
    module, _, groups = groups_by_name()
    assert all(p is not module.frozen for group in groups.values() for p in group["params"])


def test_nothing_to_learn_is_an_error():
    module = Tiny().requires_grad_(False)
    with pytest.raises(UserError, match="all its parameters are frozen"):
        make_optimizer(param_groups(module, HEAD, optim_config()), optim_config())


def test_layer_decay_slows_each_block_down():
    module, optimizer, groups = groups_by_name(layer_decay=0.5, head_lr_scale=3)
    scales = {name: group["lr_scale"] for name, group in groups.items()}
    assert scales == {
        "depth00_no_decay": 0.125, "depth01_no_decay": 0.25, "depth01": 0.25, "depth02_no_decay": 0.5,
        "head_no_decay": 3.0, "head": 3.0,
    }  # fmt: skip
    assert names_in(module, groups["depth02_no_decay"]) == ["norm.weight", "norm.bias"]
    set_rates(optimizer, 2.0)
    assert (groups["depth00_no_decay"]["lr"], groups["head"]["lr"]) == (0.25, 6.0)


def test_the_depth_counts_from_the_head_also_while_it_learns_alone():
    module = Tiny()
    module.norm.requires_grad_(False)
    module.head.requires_grad_(False)
    groups = param_groups(module, HEAD, optim_config(layer_decay=0.5), DEPTHS)
    assert [group["lr_scale"] for group in groups] == [0.125, 0.25, 0.25]


def test_overrides_replace_scale_and_decay_and_the_first_match_wins():
    rules = {"norm": {"lr_scale": "1e-3"}, "^(norm|body)": {"lr_scale": 4, "weight_decay": 0.7}}
    module, _, groups = groups_by_name(overrides={**rules, "head": {"weight_decay": 0}}, weight_decay=0.3)
    found = {name: (names_in(module, g), g["lr_scale"], g["weight_decay"]) for name, g in groups.items()}
    assert found == {
        "backbone_no_decay": (["pos_embed"], 1.0, 0.0),
        "backbone_override1_no_decay": (["norm.weight", "norm.bias"], 0.001, 0.0),
        "backbone_override2": (["body.weight"], 4.0, 0.7),
        "backbone_override2_no_decay": (["body.bias"], 4.0, 0.0),
        "head_override3": (["head.weight"], 10.0, 0.0),
        "head_override3_no_decay": (["head.bias"], 10.0, 0.0),
    }


def test_an_override_replaces_the_layer_decay():
    _, _, groups = groups_by_name(layer_decay=0.5, overrides={"body": {"lr_scale": 2}, "norm": {"lr_scale": 3}})
    assert {name: group["lr_scale"] for name, group in groups.items() if "override" in name} == {
        "depth01_override1": 2.0, "depth01_override1_no_decay": 2.0, "depth02_override2_no_decay": 3.0,
    }  # fmt: skip


def test_the_rate_that_is_meant_by_auto():
    """Weights of models without batch norm are small; rates in proportion to them need not be."""
    normed = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert (usual_rate(normed, False), usual_rate(Tiny(), False), usual_rate(Tiny(), True)) == (1e-3, 1e-4, 1e-3)


def test_each_parameter_has_its_own_factor_but_for_the_head_and_what_is_overridden():
    factors = {"pos_embed": 0.125, "body.weight": 4.0, "body.bias": 0.25, "head.weight": 8.0, "norm.weight": 8.0}
    config = optim_config(layer_decay=0.5, overrides={"norm": {"lr_scale": 3}})
    groups = param_groups(Tiny(), HEAD, config, DEPTHS, factors)
    assert {group["name"]: group["lr_scale"] for group in groups} == {
        "depth00_x0.125_no_decay": 0.125 / 8, "depth01_x4": 4 / 4, "depth01_x0.25_no_decay": 0.25 / 4,
        "depth02_override1_no_decay": 3.0, "depth02_x8_override1_no_decay": 3.0, "head": 10.0, "head_no_decay": 10.0,
    }  # fmt: skip
    assert all(group["lr"] == pytest.approx(0.1 * group["lr_scale"]) for group in groups)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"(": {"lr_scale": 1}}, "not a regular expression"),
        ({"bodi": {"lr_scale": 1}}, r"'bodi' matches no parameter"),
        ({"body": {"lr_scal": 1}}, r"'lr_scal', which is unknown.\nDid you mean lr_scale"),
        ({"body": {"momentum": 1}}, "sets 'momentum'.*\n.*lr_scale, weight_decay"),
        ({"body": {"lr_scale": -1}}, "not a number of at least 0"),
        ({"body": {"weight_decay": "much"}}, "'much' is not a number"),
        ({"body": {"weight_decay": True}}, "True is not a number"),
        ({"body": {"weight_decay": float("nan")}}, "nan is not a number"),
        ({"body": {"lr_scale": float("inf")}}, "inf is not a number"),
        ({"body": {"lr_scale": None}}, "None is not a number"),
        ({"body": {"lr_scale": 0}}, "--freeze 'regex:body'"),
        ({"body": 0.1}, "not a mapping of lr_scale and weight_decay"),
        ({"body": {}}, "not a mapping of lr_scale and weight_decay"),
        ({".": {"lr_scale": 1}, "body": {"lr_scale": 2}}, "an earlier one matches all its parameters"),
        ({"bias": {"weight_decay": 1}}, "never decayed"),
    ],
)
def test_mistakes_in_overrides(overrides, message):
    with pytest.raises(UserError, match=message):
        param_groups(Tiny(), HEAD, optim_config(overrides=overrides))


# Every optimizer by name.

UNUSABLE = {name for name in timm.optim.list_optimizers() if name.startswith(("fused", "bnb"))} | {"adahessian"}
USABLE = sorted(set(timm.optim.list_optimizers()) - UNUSABLE)
ONE_OF_EACH_CLASS = sorted({timm.optim.get_optimizer_info(name).opt_class: name for name in USABLE}.values())

# Kron's.
pytestmark = pytest.mark.filterwarnings("ignore:It is highly recommended to have 'opt_einsum'")


@pytest.fixture(autouse=True)
def _no_compiling():
    """Kron compiles its parts, which takes seconds and computes the same."""
    with torch.compiler.set_stance("force_eager"):
        yield


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten(), nn.Linear(16, 3))


def train(module, optimizer, first, last, noise=0):
    for step in range(first, last):
        pixels = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(step))
        torch.manual_seed(1000 * noise + step)  # as in a run, where it differs from rank to rank
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(module(pixels), torch.arange(4) % 3).backward()
        set_rates(optimizer, 0.01 / (1 + step))
        optimizer.step()


def start(config, module=None):
    module = module or small_net()
    return module, make_optimizer(param_groups(module, {"4.weight", "4.bias"}, config), config)


def stored(optimizer):
    """The state as a checkpoint gives it back."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_same_weights(one, other):
    for (name, tensor), expected in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(tensor, expected), name


def assert_resumes(config, cut, last):
    """Weights after a restart at step `cut` are those of the unbroken run, whatever random numbers a rank draws."""
    unbroken, optimizer = start(config)
    before = copy.deepcopy(unbroken)
    train(unbroken, optimizer, 0, last)
    assert not torch.equal(unbroken[4].weight, before[4].weight)
    module, optimizer = start(config)
    train(module, optimizer, 0, cut, noise=1)
    again, fresh = start(config, copy.deepcopy(module))
    fresh.load_state_dict(stored(optimizer))
    train(again, fresh, cut, last, noise=2)
    assert_same_weights(again, unbroken)


@pytest.mark.parametrize("name", [*ONE_OF_EACH_CLASS, *slowly(*sorted(set(USABLE) - set(ONE_OF_EACH_CLASS)))])
def test_every_optimizer_steps_and_resumes_to_the_bit(name):
    check_optimizer(name)
    assert_resumes(optim_config(name=name), 2, 4)


@pytest.mark.parametrize("name", ["lookahead_adamw", "lookahead_sgd", "Lookahead_RAdam"])
def test_lookahead_resumes_between_two_of_its_syncs(name):
    check_optimizer(name)
    assert_resumes(optim_config(name=name), 8, 14)


@pytest.mark.parametrize("name", sorted(UNUSABLE))
def test_optimizers_that_cannot_run_here_say_why(name):
    library = "apex" if name.startswith("fused") else "bitsandbytes"
    if torch.cuda.is_available() and importlib.util.find_spec(library):
        pytest.skip(f"{library} is installed")
    with pytest.raises(UserError, match=rf"--optimizer {name} cannot be used.*(second derivatives|CUDA|installed)"):
        check_optimizer(name)


@pytest.mark.parametrize(
    ("given", "near"), [("adamww", "adamw"), ("lookahead_adamww", "adamw"), ("foo_adam", "adam"), ("", "")]
)
def test_unknown_optimizer_names_the_nearest(given, near):
    with pytest.raises(UserError, match=f"no optimizer of that name(.|\n)*{near}"):
        check_optimizer(given)


@pytest.mark.parametrize("name", [n for n in USABLE if timm.optim.get_optimizer_info(n).has_momentum])
def test_momentum_0_is_allowed(name):
    module, optimizer = start(optim_config(name=name, momentum=0))
    train(module, optimizer, 0, 2)


@pytest.mark.parametrize("name", ["sgd", "momentum", "lars", "muon", "rmsprop", "lookahead_sgd"])
def test_momentum_reaches_the_optimizer(name):
    _, optimizer = start(optim_config(name=name, momentum=0.7))
    assert {group["momentum"] for group in optimizer.param_groups} == {0.7}


@pytest.mark.parametrize(("name", "betas"), [("adamw", (0.8, 0.9)), ("lion", (0.8, 0.9)), ("adan", (0.9, 0.8, 0.7))])
def test_betas_reach_the_optimizer(name, betas):
    _, optimizer = start(optim_config(name=name, betas=betas))
    assert {tuple(group["betas"]) for group in optimizer.param_groups} == {betas}


@pytest.mark.parametrize(
    ("name", "betas", "message"),
    [
        ("sgd", (0.9, 0.99), "sgd has no betas"),
        ("adamw", (0.9,), "adamw takes 2 of them"),
        ("adan", (0.9, 0.99), "adan takes 3 of them"),
        ("adamw", (0.9, 1.0), "refuses these settings: Invalid beta"),
    ],
)
def test_betas_that_do_not_fit(name, betas, message):
    with pytest.raises(UserError, match=message):
        start(optim_config(name=name, betas=betas))


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("adamw", {"eps": "1e-5", "amsgrad": True}, {"eps": 1e-5, "amsgrad": True}),
        ("lookahead_adamw", {"eps": 1e-5}, {"eps": 1e-5, "lookahead_k": 6}),
        (
            "muon",
            {"conv_mode": "batched", "ns_coefficients": ["3.4", -4.7, 2.0]},
            {"ns_coefficients": (3.4, -4.7, 2.0)},
        ),
        ("sgd", {"nesterov": False}, {"nesterov": False}),
    ],
)
def test_options_reach_the_optimizer(name, given, expected):
    _, optimizer = start(optim_config(name=name, options=given))
    for group in optimizer.param_groups:
        assert {key: group[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adamw", {"epss": 1}, r"adamw has no argument 'epss'.\nDid you mean eps\? It takes amsgrad, "),
        ("adamw", {"layer_decay": 0.5}, "no argument 'layer_decay'"),
        ("adamw", {"params": 1}, "no argument 'params'"),
        ("adamw", {"lr": 1}, "Use --set optim.lr="),
        ("adamw", {"betas": [0.9, 0.9]}, "Use --set optim.betas="),
        ("adamw", {"eps": "small"}, "refuses these settings"),
        ("adamw", {"eps": -1}, "refuses these settings: Invalid epsilon"),
        ("adamw", {"capturable": True}, "refuses these settings: If capturable=True"),
        ("kron", {"deterministic": False}, "no argument 'deterministic'"),
        ("muon", {"conv_mode": "odd"}, "refuses these settings: Invalid conv_mode"),
    ],
)
def test_mistakes_in_options(name, options, message):
    with pytest.raises(UserError, match=message):
        start(optim_config(name=name, options=options))


@pytest.mark.parametrize("name", ["adafactor", "sgd", "adamc"])
def test_a_rate_that_is_auto_comes_from_the_groups(name):
    groups = param_groups(small_net(), (), optim_config())
    optimizer = make_optimizer(groups, make_config({"optim.name": name}).optim)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1]
    assert not optimizer.param_groups[0].get("relative_step", False)


@pytest.mark.parametrize("name", ["sgdc", "adamc", "lookahead_sgdc"])
def test_corrected_decay_is_measured_at_each_groups_own_peak(name):
    """At the peak rate and without a gradient a weight shrinks by lr * weight_decay, in the head as elsewhere."""
    config = optim_config(name=name, lr=0.01, weight_decay=0.1, head_lr_scale=20)
    module, optimizer = start(config)
    extra = nn.Parameter(torch.ones(2, 2))
    extend_groups(optimizer, [{"params": [extra], "name": "x", "lr_scale": 5.0, "lr": 0.05, "weight_decay": 0.1}])
    weights = [module[0].weight, module[4].weight, extra]
    before = [weight.detach().clone() for weight in weights]
    for parameter in (*module.parameters(), extra):
        parameter.grad = torch.zeros_like(parameter)
    set_rates(optimizer, 0.01)
    optimizer.step()
    shares = [float((now.detach() / old).mean()) for now, old in zip(weights, before, strict=True)]
    assert shares == pytest.approx([1 - 0.001, 1 - 0.02, 1 - 0.005])


# Gradual unfreezing.


@pytest.fixture
def nan_in_fresh_memory():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw"])
def test_a_bad_first_step_leaves_nothing_behind(name, nan_in_fresh_memory):
    """Not even what was in the memory of a momentum that it allocated."""
    once = stepped(name, [False])
    assert torch.isfinite(once).all() and torch.equal(stepped(name, [True, False]), once)


def stepped(name, are_bad):
    """Weights after steps that a fused optimizer is told to skip if they are bad."""
    torch.manual_seed(0)
    module, optimizer, _ = groups_by_name(name=name, momentum=0.9)
    assert optimizer._step_supports_amp_scaling
    for is_bad in are_bad:
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, float("nan") if is_bad else 1.0)
        optimizer.found_inf = torch.tensor(float(is_bad))
        optimizer.step()
    return nn.utils.parameters_to_vector(module.parameters()).detach()


def test_dampened_momentum_is_not_fused():
    """Its first step takes the whole gradient, which momentum that begins at 0 would dampen."""
    config = optim_config(name="momentum", momentum=0.9, options={"dampening": 0.5})
    parameter = nn.Parameter(torch.zeros(2, 2))
    optimizer = make_optimizer(param_groups(nn.ParameterList([parameter]), set(), config), config)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert torch.equal(parameter, torch.full((2, 2), -0.1))


def unfreeze(module, stage):
    for number, block in enumerate([module[4], module[1], module[0]]):
        block.requires_grad_(number <= stage)


def open_stage(module, optimizer, config, stage):
    unfreeze(module, stage)
    extend_groups(optimizer, param_groups(module, {"4.weight", "4.bias"}, config))


def train_in_stages(module, optimizer, config, until):
    for stage in range(until + 1):
        open_stage(module, optimizer, config, stage)
        train(module, optimizer, 2 * stage, 2 * stage + 2)


def first_stage(config, module=None):
    module = module or small_net()
    unfreeze(module, 0)
    return start(config, module)


@pytest.mark.parametrize("name", ONE_OF_EACH_CLASS)
def test_unfrozen_parameters_learn_and_a_resume_that_replays_the_stages_is_exact(name):
    config = optim_config(name=name, weight_decay=0.01)
    module, optimizer = first_stage(config)
    kernel = module[0].weight.clone()
    train_in_stages(module, optimizer, config, 2)
    assert not torch.equal(module[0].weight, kernel)
    again, fresh = first_stage(config, copy.deepcopy(module))
    for stage in range(3):
        open_stage(again, fresh, config, stage)
    fresh.load_state_dict(stored(optimizer))
    train(module, optimizer, 6, 8)
    train(again, fresh, 6, 8)
    assert_same_weights(again, module)


@pytest.mark.parametrize("name", ["adamw", "lookahead_adamw"])
def test_stages_keep_groups_and_state_and_give_names_of_their_own(name):
    config = optim_config(name=name)
    module, optimizer = first_stage(config)
    train(module, optimizer, 0, 3)
    held = [optimizer.param_groups[1]["params"][0], optimizer.state_dict()["state"][1]["exp_avg"].clone()]
    for stage in (0, 1, 1, 2):
        open_stage(module, optimizer, config, stage)
    assert [group["name"] for group in optimizer.param_groups] == [
        "head_no_decay", "head", "backbone_no_decay", "backbone_no_decay_2", "backbone",
    ]  # fmt: skip
    assert optimizer.param_groups[1]["params"][0] is held[0] is module[4].weight
    assert torch.equal(optimizer.state_dict()["state"][1]["exp_avg"], held[1])
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(module.parameters()))
    set_rates(optimizer, 0.5)
    assert optimizer.param_groups[-1]["lr"] == 0.5


def test_what_is_frozen_again_stands_still():
    config = optim_config()
    module, optimizer = first_stage(config)
    train_in_stages(module, optimizer, config, 2)
    unfreeze(module, 0)
    kernel = module[0].weight.clone()
    train(module, optimizer, 9, 11)
    assert torch.equal(module[0].weight, kernel)
