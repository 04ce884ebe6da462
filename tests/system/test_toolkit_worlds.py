"""Every part of the toolkit gives the same curve on 1, 2 and 3 processes, and goes on exactly from any checkpoint."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from ddp_ft.errors import UserError
from tests.support.runs import arguments, column, read, rows, train_here, train_on
from tests.system.faults.forks import train_killed

BASE = ("--lr", 0.01, "--batch-size", 7)
GRADUAL = "freeze.schedule={0: backbone, 1: stages:1, 2: none}"
OPTIONS = {
    "class_weights": ["--class-weights", "1,2,0.5"],
    "focal": ["--loss", "focal"],
    "mixup": ["--mixup", 0.5],
    "mixup_and_cutmix": ["--augment", "heavy"],
    "balanced": ["--sampling", "balanced"],
    "ema": ["--ema", 0.9],
    "gradual": ["--set", GRADUAL, "--set", "optim.relative=true"],
    "layer_decay": ["--layer-decay", 0.5],
    "l1_and_l2_sp": ["--set", "optim.l2_sp=0.1", "--set", "optim.l1=0.001"],
    "clipping": ["--set", "train.clip_agc=0.01", "--set", "train.clip_value=0.01"],
    "frozen": ["--freeze", "stages:1"],
    "mlp": ["--head", "mlp:8"],
    "lp_ft": ["--recipe", "lp_ft", "--set", "probe.epochs=2"],
    "linear_probe": ["--recipe", "linear_probe"],
    "plateau": ["--schedule", "plateau", "--set", "schedule.patience=0"],
}
# What goes together in one run; each alone is among the slow tests.
TOGETHER = {
    "weights_and_pulls": ["class_weights", "balanced", "layer_decay", "l1_and_l2_sp", "clipping", "ema"],
    "mixed_and_focal": ["mixup_and_cutmix", "focal"],
    "gradual_and_mlp": ["gradual", "mlp"],
    "probe_and_plateau": ["lp_ft", "plateau"],
}
CASES = [*TOGETHER, *(pytest.param(name, marks=pytest.mark.slow) for name in OPTIONS if name not in TOGETHER)]
EPOCHS = 3
# Nothing of these is kept in a checkpoint; the fast suite looks at their curves alone.
RESUMED_LATER = ("mixed_and_focal",)
RESUMED = [pytest.param(case, marks=pytest.mark.slow) if case in RESUMED_LATER else case for case in CASES]


def more(start, name):
    options = [option for part in TOGETHER.get(name, [name]) for option in OPTIONS[part]]
    return ("--weights", start, *BASE, *options)


@pytest.mark.parametrize("name", CASES)
def test_same_curve_on_any_number_of_processes(shapes, tmp_path, start, name):
    train_here(shapes, tmp_path / "w1", *more(start, name), epochs=EPOCHS)
    for world_size in (2, 3):
        run = tmp_path / f"w{world_size}"
        train_on(world_size, shapes, run, *more(start, name), epochs=EPOCHS)
        for split in ("train", "val"):
            for mine, alone in zip(rows(run, split), rows(tmp_path / "w1", split), strict=True):
                for loss in {"loss", "ema_loss"} & alone.keys():
                    assert mine[loss] == pytest.approx(alone[loss], rel=1e-4)
        weights, other = (load_file(path / "checkpoints/last/model.safetensors") for path in (run, tmp_path / "w1"))
        for tensor in weights:
            torch.testing.assert_close(weights[tensor], other[tensor], rtol=1e-4, atol=1e-5)


def rewound(run, target, checkpoint):
    """A copy of a finished run as it would be, had it been killed right after that checkpoint."""
    shutil.copytree(run, target, symlinks=True)
    (target / "summary.json").unlink()
    for folder in sorted((target / "checkpoints").iterdir()):
        if folder.name > checkpoint:  # "probe_..." < "step_...", and the links' names are not among them
            folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)
    return target


@pytest.mark.parametrize("name", RESUMED)
def test_goes_on_to_the_bit_from_any_step(shapes, tmp_path, start, name):
    """Also at the borders of epochs, where stages of unfreezing begin (5 steps an epoch)."""
    cadence = ["--set", "checkpoint.every_steps=1", "--set", "checkpoint.keep=99"]
    train_here(shapes, tmp_path / "whole", *more(start, name), *cadence, epochs=EPOCHS)
    saved = sorted(folder.name for folder in (tmp_path / "whole/checkpoints").glob("*_*"))
    assert "step_00000015" in saved
    for checkpoint in ("step_00000004", "step_00000005", "step_00000006", "step_00000010"):
        run = rewound(tmp_path / "whole", tmp_path / checkpoint, checkpoint)
        train_here(shapes, run, *more(start, name), *cadence, epochs=EPOCHS)
        assert column(run, "loss") == column(tmp_path / "whole", "loss")
        for file in ("best/model.safetensors", "checkpoints/last/model.safetensors"):
            assert (run / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
        assert read(run, "summary.json")["val"] == read(tmp_path / "whole", "summary.json")["val"]


def test_a_kill_inside_the_probe_goes_on_there(shapes, tmp_path, start):
    probe = ["--set", "probe.epochs=60", "--set", "probe.batch_size=16", "--set", "checkpoint.every_steps=1"]
    args = (*more(start, "lp_ft"), *probe)
    train_here(shapes, tmp_path / "whole", *args)
    train_killed(arguments(shapes, tmp_path / "cut", *args), tmp_path / "fault", r"probe_\d{8}", 21)
    train_here(shapes, tmp_path / "cut", *args)
    assert column(tmp_path / "cut", "step", phase="probe") == list(range(1, 121))
    for phase in ("probe", "train"):
        assert column(tmp_path / "cut", "loss", phase=phase) == column(tmp_path / "whole", "loss", phase=phase)
    assert not list((tmp_path / "cut/checkpoints").glob("probe_*"))
    best = "best/model.safetensors"
    assert (tmp_path / "cut" / best).read_bytes() == (tmp_path / "whole" / best).read_bytes()


def test_a_recipe_is_what_it_was_when_the_run_began(shapes, tmp_path, start):
    """As after an update: config.yaml is of a version whose recipe had another layer decay, and lacked a key."""
    cadence = ["--set", "checkpoint.every_steps=1", "--set", "checkpoint.keep=99"]
    before = ["--layer-decay", 0.5, "--set", "optim.relative=false"]
    train_here(shapes, tmp_path / "whole", *more(start, "lp_ft"), *cadence, *before, epochs=EPOCHS)
    run = rewound(tmp_path / "whole", tmp_path / "run", "step_00000008")
    lines = (run / "config.yaml").read_text().splitlines(keepends=True)
    assert "  relative: false\n" in lines and "  layer_decay: 0.5\n" in lines
    (run / "config.yaml").write_text("".join(line for line in lines if "relative:" not in line))
    train_here(shapes, run, *more(start, "lp_ft"), *cadence, epochs=EPOCHS)
    assert column(run, "loss") == column(tmp_path / "whole", "loss")
    assert (run / "config.yaml").read_text() == "".join(lines)
    best = "best/model.safetensors"
    assert (run / best).read_bytes() == (tmp_path / "whole" / best).read_bytes()
    with pytest.raises(UserError, match=r"layer_decay: 0\.5 there, 0\.75 here"):
        train_here(shapes, run, *more(start, "lp_ft"), *cadence, "--layer-decay", 0.75, epochs=EPOCHS)
