"""The toolkit's options, one by one: each test fails if its option is ignored."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from ddp_ft.errors import UserError
from tests.support.runs import call_on, column, read, rows, train_here

SET = "--set"
MLP = ["--head", "mlp:8"]
HEAVY = ["--augment", "heavy"]
EFFECTIVE = ["--class-weights", "effective"]
FOCAL = ["--loss", "focal"]
RANDAUGMENT = [SET, "augment.policy=randaugment"]
MOVES = {
    "vertical_flip": 0.5, "right_angles": 0.5, "rotation": 10, "translation": 0.1, "scale": 0.2, "grey": 0.5,
    "blur": 0.5,
}  # fmt: skip
# (what both runs have, what one of them has besides)
CHANGES = {
    "data.sampling": ([], ["--sampling", "balanced"]),
    "head.name": ([], MLP),
    "head.dropout": ([], [SET, "head.dropout=0.5"]),
    "head.activation": (MLP, [SET, "head.activation=tanh"]),
    "head.norm": (MLP, [SET, "head.norm=layer"]),
    "train.clip_value": ([], [SET, "train.clip_value=1e-6"]),
    "train.clip_agc": ([], [SET, "train.clip_agc=1e-6"]),
    "optim.layer_decay": ([], ["--layer-decay", 0.1]),
    "optim.relative": ([], [SET, "optim.relative=true"]),
    "optim.betas": ([], [SET, "optim.betas=[0.1,0.2]"]),
    "optim.options": ([], [SET, "optim.options={eps: 0.1}"]),
    "optim.overrides": ([], [SET, "optim.overrides={bias: {lr_scale: 0.001}}"]),
    "optim.l1": ([], [SET, "optim.l1=0.1"]),
    "loss.name": ([], ["--loss", "bce"]),
    "loss.class_weights": ([], ["--class-weights", "1,5,1"]),
    "loss.focal_gamma": (FOCAL, [SET, "loss.focal_gamma=0.5"]),
    "augment.preset": ([], HEAVY),
    **{f"augment.{key}": ([], [SET, f"augment.{key}={value}"]) for key, value in MOVES.items()},
    "augment.policy": ([], RANDAUGMENT),
    "augment.magnitude": (RANDAUGMENT, [SET, "augment.magnitude=25"]),
    "augment.color_jitter": ([], [SET, "augment.color_jitter=0.5"]),
    "augment.erasing": ([], [SET, "augment.erasing=1"]),
    "augment.mixup": ([], ["--mixup", 1]),
    "augment.cutmix": ([], ["--cutmix", 1]),
}


def curve(data, run, *more, **options):
    train_here(data, run, "--lr", 0.01, *more, **options)
    return column(run, "loss")


@pytest.fixture(scope="module")
def curves(shapes, tmp_path_factory):
    """The curve without a change, by the options that it is without; each is trained once."""
    known = {}

    def of(base):
        words = tuple(map(str, base))
        if words not in known:
            known[words] = curve(shapes, tmp_path_factory.mktemp("base") / "r", *base)
        return known[words]

    return of


@pytest.mark.parametrize("key", CHANGES)
def test_what_changes_the_curve(shapes, tmp_path, curves, key):
    base, change = CHANGES[key]
    assert curves(base) != curve(shapes, tmp_path / "b", *base, *change)


def last(run):
    return load_file(run / "checkpoints/last/model.safetensors")


def test_effective_weights(shapes, tmp_path):
    """The classes must differ in size, or all weights are 1."""
    uneven = tmp_path / "uneven"
    for part, name, count in (("train", "disc", 9), ("train", "square", 3), ("val", "disc", 2), ("val", "square", 2)):
        (uneven / part / name).mkdir(parents=True)
        for file in sorted((shapes / part / name).iterdir())[:count]:
            (uneven / part / name / file.name).symlink_to(file)
    first = curve(uneven, tmp_path / "a", *EFFECTIVE)
    assert first != curve(uneven, tmp_path / "b", *EFFECTIVE, SET, "loss.effective_beta=0.5")
    assert first != curve(uneven, tmp_path / "c")


def test_what_changes_the_curve_of_batch_norm(shapes, tmp_path):
    for run, more in (("a", []), ("b", [SET, "model.batch_norm=frozen"])):
        train_here(shapes, tmp_path / run, *more, net="with_batch_norm")
    a, b = (last(tmp_path / run)["1.running_mean"] for run in "ab")
    assert bool(b.eq(0).all()) and not bool(a.eq(0).any())


def test_what_changes_the_curve_from_weights(shapes, tmp_path, start):
    """A strong pull keeps the pretrained weights where they began."""
    far = {}
    for pull in (0, 30):
        train_here(
            shapes, tmp_path / str(pull), "--weights", start, "--recipe", "full", "--lr", 0.01,
            SET, f"optim.l2_sp={pull}", SET, "train.clip_norm=0", epochs=3,
        )  # fmt: skip
        far[pull] = float((last(tmp_path / str(pull))["0.weight"] - torch.load(start)["0.weight"]).norm())
    assert far[30] < 0.5 * far[0]


def test_head_bias(shapes, tmp_path):
    bias = {}
    for kind in ("zero", "prior"):
        table = ["--set", "data.target=label", "--lr", 1e-9]
        file = tmp_path / "table.csv"
        images = [*(shapes / "train/disc").iterdir(), *sorted((shapes / "train/square").iterdir())[:3]]
        file.write_text("image,label\n" + "".join(f"{each},{each.parent.name}\n" for each in images))
        train_here(file, tmp_path / kind, *table, SET, f"head.bias={kind}")
        bias[kind] = last(tmp_path / kind)["6.bias"]
    assert bias["zero"].tolist() == pytest.approx([0, 0], abs=1e-6)
    assert float(bias["prior"][0]) > float(bias["prior"][1]) + 0.5


def test_frozen_parts_stay(shapes, tmp_path, start, capsys):
    """freeze.parts for the whole run; freeze.schedule until its epoch."""
    before = torch.load(start)
    schedule = "freeze.schedule={0: backbone, 2: none}"
    for run, more, epochs in (
        ("parts", ["--freeze", "backbone"], 2),
        ("early", [SET, schedule], 2),
        ("late", [SET, schedule], 3),
    ):
        train_here(shapes, tmp_path / run, "--weights", start, "--lr", 0.01, *more, epochs=epochs)
        after = last(tmp_path / run)
        moved = {name for name in after if not torch.equal(after[name], before[name])}
        head = {"6.weight", "6.bias"}
        assert moved == (set(after) if run == "late" else head)
    first, second = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Stage ")][-2:]
    assert first.startswith("Stage 1 of 2, from epoch 1 on: ") and first.endswith(" learn (frozen: backbone).")
    assert re.fullmatch(r"Stage 2 of 2, from epoch 3 on: all [\d,]+ parameters learn\.", second)


def test_cached_features_give_what_frozen_images_give(shapes, tmp_path, start):
    """Without augmentation the head sees the same features either way; the order of samples differs by its seed."""
    more = ["--weights", start, "--freeze", "backbone", "--augment", "none", "--lr", 0.01]
    train_here(shapes, tmp_path / "cached", *more, SET, "freeze.cache_features=true", epochs=2)
    train_here(shapes, tmp_path / "images", *more, epochs=2)
    assert read(tmp_path / "cached", "plan.json")["recipe"] == "fine_tune"
    for run in ("cached", "images"):
        assert column(tmp_path / run, "step") == list(range(1, 9))
        assert torch.equal(last(tmp_path / run)["0.weight"], torch.load(start)["0.weight"])
    cached, images = (column(tmp_path / run, "loss", "val")[-1] for run in ("cached", "images"))
    assert cached == pytest.approx(images, rel=0.05)


def test_probe(shapes, tmp_path, start):
    base = ["--weights", start, "--recipe", "full", SET, "probe.epochs=2", SET, "probe.batch_size=10"]
    train_here(shapes, tmp_path / "base", *base)
    assert column(tmp_path / "base", "step", phase="probe") == list(range(1, 7))  # 30 features in tens, twice
    assert column(tmp_path / "base", "step") == [1, 2, 3, 4]
    first = column(tmp_path / "base", "loss", phase="probe")
    for number, change in enumerate(("probe.lr=0.1", "probe.weight_decay=5")):
        train_here(shapes, tmp_path / str(number), *base, SET, change)
        assert column(tmp_path / str(number), "loss", phase="probe") != first


def test_the_probes_model_is_worth_what_was_said(shapes, tmp_path, start):
    """It was measured on features; evaluation goes by the images, and gives the same to the last digit."""
    train_here(shapes, tmp_path / "r", "--weights", start, "--recipe", "lp_ft", "--lr", 1e-12)
    summary = read(tmp_path / "r", "summary.json")
    assert summary["best_phase"] == "probe"
    for world_size in (1, 2, 3):
        told = json.loads(call_on(world_size, "ddp_ft.evaluate", tmp_path / "r", "--data", shapes, "--device", "cpu"))
        assert {name: told[name] for name in summary["val"]} == summary["val"]


def test_max_steps(shapes, tmp_path):
    train_here(shapes, tmp_path / "r", "--max-steps", 6, "--schedule", "linear", SET, "schedule.warmup=0", epochs=9)
    rates = column(tmp_path / "r", "lr/backbone")
    assert len(rates) == 6
    assert rates == pytest.approx([rates[0] * (1 - step / 6) for step in range(6)])


def test_max_minutes(shapes, tmp_path, capsys):
    """The budget is fixed once, and reported with the end that it sets; a second start keeps it."""
    train_here(shapes, tmp_path / "r", "--max-minutes", 1e-3, epochs=200)
    summary, said = read(tmp_path / "r", "summary.json"), capsys.readouterr().out
    ends = f"training ends after step {summary['step']} of 800, epoch {summary['epoch']:.4g}, eta 0:00:00;"
    assert f"--max-minutes 0.001: {ends}" in said
    assert re.search(rf"train  epoch (\d+)/\1  step {summary['step']}/{summary['step']} .* eta 0:00:00\n", said)
    assert 20 <= summary["step"] < 800 and summary["status"] == "done"
    again = train_here(shapes, tmp_path / "r", "--max-minutes", 1e-3, epochs=200)
    assert again == 0 and read(tmp_path / "r", "summary.json") == summary
    train_here(shapes, tmp_path / "s", "--max-minutes", 1e-4, epochs=6)  # measured when one step is left
    assert "--max-minutes 0.0001 is over; the last of 24 steps follows." in capsys.readouterr().out


STEP = ["--schedule", "step", SET, "schedule.warmup=0"]
MULTI = ["--schedule", "multistep", SET, "schedule.warmup=0", SET, "schedule.milestones=[1,2]"]
POWER = ["--schedule", "polynomial", SET, "schedule.warmup=0"]


@pytest.mark.parametrize(
    ("base", "change"),
    [
        (STEP, "schedule.every_epochs=2"),
        (STEP, "schedule.gamma=0.5"),
        (MULTI, "schedule.milestones=[2]"),
        (POWER, "schedule.power=1"),
    ],
)
def test_steps_of_the_rate(shapes, tmp_path, base, change):
    train_here(shapes, tmp_path / "a", *base, epochs=3)
    train_here(shapes, tmp_path / "b", *base, SET, change, epochs=3)
    assert column(tmp_path / "a", "lr/backbone") != column(tmp_path / "b", "lr/backbone")


def test_plateau(shapes, tmp_path):
    """A rate too small to change a thing: no evaluation is better than the first."""
    falls = {}
    for patience in (0, 1):
        more = ["--schedule", "plateau", "--lr", 1e-9, SET, "schedule.warmup=0", SET, f"schedule.patience={patience}"]
        train_here(shapes, tmp_path / str(patience), *more, epochs=5)
        falls[patience] = [rate / 1e-9 for rate in column(tmp_path / str(patience), "lr/backbone")[::4]]
    assert falls[0] == pytest.approx([1, 1, 0.1, 0.01, 0.001])
    assert falls[1] == pytest.approx([1, 1, 1, 0.1, 0.1])


def test_early_stopping(shapes, tmp_path, capsys):
    for run, more in (("gain", [SET, "eval.min_gain=2"]), ("none", ["--lr", 1e-9])):
        train_here(shapes, tmp_path / run, "--patience", 2, *more, epochs=9)
        summary = read(tmp_path / run, "summary.json")
        assert (summary["status"], summary["stopped_early"], summary["epoch"]) == ("done", True, 3.0)
    assert "\nEarly stop at step 12 of 36: 2 evaluations in a row without a better accuracy" in capsys.readouterr().out
    assert train_here(shapes, tmp_path / "none", "--patience", 2, "--lr", 1e-9, epochs=9) == 0
    assert len(rows(tmp_path / "none", "val")) == 3


def test_of_equal_evaluations_that_with_the_smaller_loss_is_best(shapes, tmp_path):
    """A rate too small for other answers, but not for another loss."""
    train_here(shapes, tmp_path / "r", "--lr", 2e-5, "--patience", 1, SET, "checkpoint.keep=1", epochs=3)
    evaluated = rows(tmp_path / "r", "val")
    assert len({row["accuracy"] for row in evaluated}) == 1 and len({row["loss"] for row in evaluated}) == 3
    best, summary = min(evaluated, key=lambda row: row["loss"]), read(tmp_path / "r", "summary.json")
    assert best["step"] > evaluated[0]["step"] and summary["epoch"] == 3
    assert (summary["best_step"], summary["val"]["loss"]) == (best["step"], best["loss"])
    assert (tmp_path / "r/checkpoints/best").resolve().name == f"step_{best['step']:08d}"


def test_moving_average(shapes, tmp_path):
    train_here(shapes, tmp_path / "r", "--ema", 0.9, "--lr", 0.01, epochs=2)
    row, summary = rows(tmp_path / "r", "val")[-1], read(tmp_path / "r", "summary.json")
    assert row["ema_loss"] != row["loss"]
    average = load_file(tmp_path / "r/checkpoints/last/ema.safetensors")
    assert not torch.equal(average["0.weight"], last(tmp_path / "r")["0.weight"])
    assert summary["best_weights"] in ("raw", "ema")


def test_the_better_of_raw_and_averaged_weights_is_kept(shapes, tmp_path):
    """A rate that wrecks the weights in the end leaves the average better."""
    more = ["--ema", 0.9, "--lr", 1.0, "--metric", "loss", SET, "train.clip_norm=0"]
    train_here(shapes, tmp_path / "r", *more, epochs=3)
    both = [(row["loss"], row["ema_loss"]) for row in rows(tmp_path / "r", "val")]
    summary = read(tmp_path / "r", "summary.json")
    assert summary["val"]["loss"] == min(min(pair) for pair in both)


def test_best_checkpoints(shapes, tmp_path):
    more = [SET, "checkpoint.keep=1", SET, "checkpoint.keep_best=3", "--metric", "loss", "--lr", 0.01]
    train_here(shapes, tmp_path / "r", *more, epochs=6)
    losses = {4 * number: loss for number, loss in enumerate(column(tmp_path / "r", "loss", "val"), start=1)}
    best = sorted(losses, key=losses.__getitem__)[:3]
    saved = [int(folder.name.removeprefix("step_")) for folder in (tmp_path / "r/checkpoints").glob("step_*")]
    assert sorted(saved) == sorted({*best, 24})


def test_recipe(shapes, tmp_path, start, capsys):
    for recipe, found in (("auto", "lp_ft"), ("linear_probe", "linear_probe")):
        train_here(shapes, tmp_path / recipe, "--weights", start, "--recipe", recipe)
        assert read(tmp_path / recipe, "plan.json")["recipe"] == found
    assert "lp_ft: a pretrained model and 30 images" in capsys.readouterr().out
    train_here(shapes, tmp_path / "none")
    assert read(tmp_path / "none", "plan.json")["recipe"] == "full"


METRIC = """
import torchmetrics


class Hits(torchmetrics.Metric):
    higher_is_better = True

    def __init__(self):
        super().__init__()
        self.add_state("hits", default=torch.tensor(0))

    def update(self, preds, target):
        self.hits += (preds.argmax(1) == target).sum()

    def compute(self):
        return self.hits.float()
"""


def test_metric_of_the_users_own(shapes, tmp_path):
    (tmp_path / "code.py").write_text("import torch\n" + METRIC)
    more = [SET, f"eval.extra={tmp_path / 'code.py'}:Hits", "--metric", "hits"]
    train_here(shapes, tmp_path / "r", *more)
    val = read(tmp_path / "r", "summary.json")["val"]
    assert val["hits"] == pytest.approx(12 * val["accuracy"])


def test_wrong_recipe(shapes, tmp_path):
    with pytest.raises(UserError, match="lp_ft"):
        train_here(shapes, tmp_path / "r", "--recipe", "lpft")
