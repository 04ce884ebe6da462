"""Bad input: one clear message, exit code 2, nothing half-written."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ddp_ft.errors import UserError
from tests.support import nets
from tests.support.commands import run_module
from tests.support.images import write_shapes
from tests.support.runs import arguments, train_here, train_on
from tests.system.faults.forks import run_forked


def refused(data, run_dir, *more, **options):
    with pytest.raises(UserError) as caught:
        train_here(data, run_dir, *more, **options)
    return str(caught.value)


@pytest.fixture
def own_shapes(tmp_path):
    """A copy of the shapes that a test may spoil."""
    return write_shapes(tmp_path / "data")


def test_missing_and_empty_folders(tmp_path):
    assert "nowhere" in refused(tmp_path / "nowhere", tmp_path / "r")
    (tmp_path / "empty").mkdir()
    assert "empty" in refused(tmp_path / "empty", tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_one_class_and_an_empty_class(own_shapes, tmp_path):
    (own_shapes / "train" / "nothing").mkdir()
    assert "nothing" in refused(own_shapes, tmp_path / "r")
    (own_shapes / "train" / "nothing").rmdir()
    lone = tmp_path / "lone"
    lone.mkdir()
    (lone / "disc").symlink_to(own_shapes / "train/disc")
    assert "disc" in refused(lone, tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_a_class_that_training_lacks(own_shapes, tmp_path):
    (own_shapes / "val/disc").rename(own_shapes / "val/blob")
    assert "blob" in refused(own_shapes, tmp_path / "r")


def test_damaged_images_are_all_named_once(own_shapes, tmp_path):
    good = (own_shapes / "train/disc/00.png").read_bytes()
    (own_shapes / "train/disc/03.png").write_bytes(good[: len(good) // 2])
    (own_shapes / "train/square/07.png").write_text("this is no image")
    message = refused(own_shapes, tmp_path / "r")
    assert message.count("disc/03.png") == message.count("square/07.png") == 1


def test_unknown_model_names_the_nearest(shapes, tmp_path):
    assert "resnet18" in refused(shapes, tmp_path / "r", "--model", "timm/resnet81")
    assert "timm/resnet18" in refused(shapes, tmp_path / "r", "--model", "resnet18")


def test_weights_of_another_architecture(shapes, tmp_path):
    file = tmp_path / "w.safetensors"
    save_file({name: torch.zeros(2, 2) for name in nets.plain().state_dict()}, file)
    assert "another architecture" in refused(shapes, tmp_path / "r", "--weights", file)
    assert not (tmp_path / "r").exists()


def test_no_network(shapes, tmp_path):
    message = refused(shapes, tmp_path / "r", "--model", "timm/resnet10t.c3_in1k", "--weights", "pretrained")
    assert "--weights FILE" in message and "ddp-ft fetch" in message


def test_another_recipe_or_other_data(own_shapes, tmp_path):
    train_here(own_shapes, tmp_path / "r")
    message = refused(own_shapes, tmp_path / "r", "--lr", 0.5)
    assert "optim.lr: auto there, 0.5 here" in message
    train_here(own_shapes, tmp_path / "r", "--set", "log.every_steps=7")  # a machine key may change
    (own_shapes / "train/disc/00.png").unlink()
    for name in ("20.png", "21.png"):
        shutil.copy(own_shapes / "train/square/00.png", own_shapes / "train/square" / name)
    shutil.copy(own_shapes / "train/square/00.png", own_shapes / "train/disc/01.png")
    message = refused(own_shapes, tmp_path / "r", "--extend", epochs=2)
    assert "2 files more (train/square/20.png, train/square/21.png); 1 file fewer (train/disc/00.png)" in message
    assert "1 file with another size or other values (train/disc/01.png)" in message


def test_unwritable_run_folder(shapes, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(shapes, tmp_path / "file" / "r")


@pytest.mark.parametrize(
    ("more", "fragment"),
    [
        (["--set", "optim.lrr=1"], "Unknown configuration key"),
        (["--set", "optim.lr=abc"], "is not a number"),
        (["--lr", "-1"], "above 0"),
        (["--optimizer", "adamww"], "adamw"),
        (["--epochs", "0"], "at least 1"),
        (["--config", "/no/such.yaml"], "cannot be read"),
    ],
)
def test_bad_values(shapes, tmp_path, more, fragment):
    assert fragment in refused(shapes, tmp_path / "r", *more)
    assert not (tmp_path / "r").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_what_the_machine_lacks(shapes, tmp_path):
    assert "no usable CUDA device" in refused(shapes, tmp_path / "r", "--device", "cuda")
    assert "fp16 needs a CUDA device" in refused(shapes, tmp_path / "r", "--precision", "fp16")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_more_processes_than_gpus(shapes, tmp_path, torchrun):
    processes = torch.cuda.device_count() + 1
    done = torchrun(processes, arguments(shapes, tmp_path / "r", "--device", "cuda"))
    assert done.stderr.count("Error: ") == 1 and f"--nproc_per_node={processes - 1}" in done.stderr


def test_torchrun_variables_half_set():
    done = run_module("ddp_ft.train", env={**os.environ, "RANK": "0", "WORLD_SIZE": "2"})
    assert done.returncode == 2
    assert done.stderr.startswith("Error: The launcher's variables are half set") and "LOCAL_RANK" in done.stderr


@pytest.mark.parametrize(("flag", "ours"), [("--optimiser", "--optimizer"), ("--gpus", "--processes N")])
def test_unknown_flag_names_the_nearest_or_what_it_is_called_here(flag, ours):
    done = run_module("ddp_ft.train", flag, 3)
    assert done.returncode == 2 and ours in done.stderr and "Traceback" not in done.stderr


def test_bare_torchrun_prints_the_message_once(torchrun):
    done = torchrun(4, [])
    output = done.stdout + done.stderr
    assert done.returncode == 1  # the agent's
    assert output.count("./launch/demo.sh") == output.count("Example:") == 1
    assert "exitcode  : 2" in output


def test_batch_smaller_than_the_world(shapes, tmp_path):
    with pytest.raises(UserError, match="--batch-size 2 is smaller than the 3 processes"):
        train_on(3, shapes, tmp_path / "r", "--batch-size", 2)
    assert not (tmp_path / "r").exists()


def test_a_damaged_image_ends_all_ranks_with_one_message(own_shapes, tmp_path):
    (own_shapes / "train/disc/03.png").write_text("no image")
    codes, said = run_forked(2, arguments(own_shapes, tmp_path / "r"))
    assert 2 in codes and 0 not in codes, said
    assert said.count("Error: ") == said.count("disc/03.png") == 1 and "Connection" not in said, said


@pytest.mark.slow
def test_a_run_folder_that_is_not_shared(shapes, tmp_path, torchrun):
    """Each rank starts in a folder of its own, so that a relative --run-dir means another place for each."""
    launcher = tmp_path / "apart.py"
    launcher.write_text(
        "import os\n"
        f"home = {str(tmp_path)!r} + '/home' + os.environ['RANK']\n"
        "os.makedirs(home, exist_ok=True)\nos.chdir(home)\n"
        "from ddp_ft.train import train\nfrom ddp_ft.cli.process import run_command\nrun_command(train)\n"
    )
    done = torchrun(2, arguments(shapes, "r"), module="apart", env={"PYTHONPATH": f"{tmp_path}:{Path.cwd()}"})
    assert "is not shared" in done.stderr and "rank(s) 1" in done.stderr
    assert done.stderr.count("Error: ") == 1 + done.stderr.count("ChildFailedError: ")


@pytest.mark.parametrize("name", ["evaluate", "predict"])
def test_evaluate_and_predict_say_what_is_wrong(shapes, tmp_path, name):
    import importlib

    command = getattr(importlib.import_module(f"ddp_ft.{name}"), name)
    more = ["--data", shapes] if name == "evaluate" else [shapes, "--output", tmp_path / "p.csv"]
    with pytest.raises(UserError, match=r"has no best/model.json"):
        command.main([str(argument) for argument in (tmp_path, *more)], standalone_mode=False)


def test_predict_wants_a_folder_for_its_output(shapes, tmp_path):
    from ddp_ft.predict import predict

    train_here(shapes, tmp_path / "r")
    with pytest.raises(UserError, match="there is no folder"):
        predict.main([str(tmp_path / "r"), str(shapes), "--output", str(tmp_path / "no/p.csv")], standalone_mode=False)


def test_evaluate_on_classes_that_the_model_does_not_know(own_shapes, tmp_path):
    from ddp_ft.evaluate import evaluate

    train_here(own_shapes, tmp_path / "r")
    (own_shapes / "val/disc").rename(own_shapes / "val/blob")
    with pytest.raises(UserError, match="blob"):
        evaluate.main([str(tmp_path / "r"), "--data", str(own_shapes)], standalone_mode=False)


def test_elastic_error_file_holds_the_message(tmp_path):
    file = tmp_path / "error.json"
    done = run_module("ddp_ft.train", env={**os.environ, "TORCHELASTIC_ERROR_FILE": str(file)})
    assert done.returncode == 2
    assert json.loads(file.read_text())["message"] == "--data and --model must be given."


def test_images_of_one_pixel_are_fine(tmp_path):
    for part in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / "d" / part / name).mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (1, 1 + number), (number * 50, 0, 0)).save(
                    tmp_path / "d" / part / name / f"{number}.PNG"
                )
    assert train_here(tmp_path / "d", tmp_path / "r") == 0
