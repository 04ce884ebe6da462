"""The ways of a training that a GPU takes differently: each goes, and those that promise the same result give it."""

from functools import partial

import pytest

from tests.gpu.test_train import figures, losses
from tests.support.runs import read

pytestmark = pytest.mark.gpu
# Of runs that compute the same in another order, in fp32.
SAME = 0.01
# {name: (options, the net)}: the losses are those of a run without the options.
SAME_CURVE = {
    "channels_last": (["--set", "compute.memory_format=channels_last"], "plain"),
    "contiguous": (["--set", "compute.memory_format=contiguous"], "plain"),
    "recompute": (["--set", "compute.recompute=true"], "with_blocks"),
    "micro-batch 4": (["--micro-batch", 4], "plain"),
    "micro-batch auto": (["--micro-batch", "auto"], "plain"),
    "deterministic": (["--set", "compute.deterministic=true"], "plain"),
}
OTHER_CURVE = {
    "EMA": ["--ema", 0.9],
    "mixup and cutmix": ["--mixup", 0.2, "--cutmix", 1.0],
    "heavy augmentation": ["--augment", "heavy"],
    "SGD": ["--optimizer", "sgd"],
    "frozen stages and layer decay": ["--freeze", "regex:^0", "--layer-decay", 0.8],
    "balanced, focal, soft clipping": ["--sampling", "balanced", "--loss", "focal", "--set", "train.clip_agc=0.1"],
    "a profile": ["--profile", "4-6"],
    "charts and images": ["--set", "log.pictures=true", "--set", "log.histograms=true", "--set", "log.report=true"],
}


@pytest.fixture(scope="module")
def usual(machine, tmp_path_factory):
    """usual(NET): the losses of a run in fp32 without options; each is trained once."""
    found = {}

    def of(net):
        if net not in found:
            run = tmp_path_factory.mktemp("usual") / net
            machine.train(run, "--precision", "fp32", net=net)
            found[net] = losses(run)
        return found[net]

    return of


@pytest.mark.parametrize("name", SAME_CURVE)
def test_the_same_result(machine, usual, tmp_path, record_property, name):
    options, net = SAME_CURVE[name]
    machine.train(tmp_path / "r", "--precision", "fp32", *options, net=net)
    assert losses(tmp_path / "r") == pytest.approx(usual(net), rel=SAME)
    record_property("note", figures(tmp_path / "r"))


@pytest.mark.parametrize("name", OTHER_CURVE)
def test_it_goes(machine, tmp_path, record_property, name):
    machine.train(tmp_path / "r", *OTHER_CURVE[name])
    assert losses(tmp_path / "r")
    record_property("note", figures(tmp_path / "r"))


@pytest.mark.parametrize("how", ["regional", "true"])
def test_compile(machine, usual, tmp_path, record_property, how):
    """All of it without a group, and its blocks below DDP."""
    if machine.smoke:
        pytest.skip("--smoke: compiling takes half a minute on a CPU")
    options = ("--precision", "fp32", "--set", f"compute.compile={how}")
    (machine.train if how == "true" else partial(machine.train_on, 1))(tmp_path / "r", *options, net="with_blocks")
    assert losses(tmp_path / "r")[:6] == pytest.approx(usual("with_blocks")[:6], rel=0.05)
    summary = read(tmp_path / "r", "summary.json")
    record_property("note", f"{summary['compile_seconds']:.1f} s of compiling, {figures(tmp_path / 'r')}")


def test_tune(machine, tmp_path, record_property):
    if machine.smoke:
        pytest.skip("--smoke: measuring takes a quarter of a minute on a CPU")
    machine.train(tmp_path / "r", "--tune")
    assert losses(tmp_path / "r")
    tuned = read(tmp_path / "r", "plan.json")["tuned"]
    record_property("note", ", ".join(f"{key}={value}" for key, value in tuned.items()))


def test_nvjpeg(machine, tmp_path, record_property):
    machine.need_cuda("nvJPEG")
    machine.train(tmp_path / "r", "--set", "data.decoder=nvjpeg")
    assert losses(tmp_path / "r")
    record_property("note", figures(tmp_path / "r"))


@pytest.mark.parametrize("recipe", ["lp_ft", "linear_probe", "fine_tune", "linear_probe of 2 views"])
def test_recipe(machine, start, tmp_path, recipe):
    """Features are computed once, on the device, and kept."""
    name, *views = recipe.split(" of 2 views")
    more = ["--set", "freeze.views=2"] if views else []
    machine.train(tmp_path / "r", "--recipe", name, "--weights", start, *more, net="plain")
    assert read(tmp_path / "r", "summary.json")["status"] == "done"
