"""`doctor` as a whole: what it prints, what it returns, and that it leaves nothing behind."""

import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ddp_ft.diagnostics import disk, speed
from ddp_ft.doctor import doctor
from ddp_ft.errors import UserError
from ddp_ft.training.ema import Ema
from tests.support.images import write_shapes
from tests.support.runs import call_on, train_here

GOLDEN = Path(__file__).with_name("doctor.txt")
RUN = ["--model", "timm/test_resnet", "--weights", "none", "--image-size", "64", "--device", "cpu", "--workers", "0"]
# Families whose texts are this machine's; of the others they are the data's and the recipe's.
OF_THE_MACHINE = ("machine", "job", "disk", "speed")


@pytest.fixture
def images(tmp_path, monkeypatch):
    """A set with a torn image, a leak and a double, in the folder that doctor is started in."""
    monkeypatch.chdir(tmp_path)
    write_shapes(Path("shapes"), train=12, val=4)
    shutil.copy("shapes/train/disc/00.png", "shapes/val/disc/seen.png")
    shutil.copy("shapes/train/disc/01.png", "shapes/train/disc/twin.png")
    torn = Path("shapes/train/square/00.png")
    torn.write_bytes(torn.read_bytes()[:-40])
    # Short measurements: what they give is not looked at here.
    monkeypatch.setattr(speed, "LOADING_SECONDS", 0.1)
    monkeypatch.setattr(speed, "STEP_SECONDS", 0.2)
    monkeypatch.setattr(disk, "PROBE_SECONDS", 0.1)
    return Path("shapes")


def call(capsys, *args):
    """(exit code, what is printed) of doctor in this process."""
    code = doctor.main([str(arg) for arg in args], standalone_mode=False)
    return code, capsys.readouterr().out


def files_below(folder):
    return sorted(str(path) for path in folder.rglob("*"))


def without_machine(text):
    """The text with ... for what is the machine's: verdicts and texts there, and the remedies below them."""
    lines, family = [], ""
    for line in text.splitlines():
        if not line.startswith(" "):
            family = line
        if family not in OF_THE_MACHINE or line == family:
            lines.append(line)
        elif found := re.match(r"  \w+ +(\S+(?: \S+)*)  ", line):
            lines.append(f"  ... {found[1]}")
    return "\n".join(lines) + "\n"


def test_what_it_prints(images, tmp_path, capsys):
    before = files_below(tmp_path)
    code, out = call(capsys, "--data", images, *RUN)
    *text, last = without_machine(out).splitlines()
    assert "\n".join(text) + "\n" == GOLDEN.read_text()
    assert re.fullmatch(r"\d problems, \d+ warnings?, \d+ notes?, \d+ ok", last)
    assert code == 2
    assert files_below(tmp_path) == before


def test_steps_are_measured_with_the_moving_average(images, capsys, monkeypatch):
    """Its memory and its part of a step are training's too."""
    updates, update = [], Ema.update

    def counted(self, module, is_bad):
        updates.append(update(self, module, is_bad))

    monkeypatch.setattr(Ema, "update", counted)
    call(capsys, "--data", images, *RUN, "--ema", 0.9)
    assert len(updates) >= 2


def test_json_has_every_path_and_warnings_are_no_failure(images, capsys):
    Path("shapes/val/disc/seen.png").unlink()
    for number in range(8):
        shutil.copy("shapes/train/disc/02.png", f"shapes/train/disc/copy{number}.png")
    parts = ("--micro-batch", 5, "--mixup", 0.2)
    code, out = call(capsys, "--data", images, *RUN, *parts, "--set", "data.on_error=skip", "--json")
    told = json.loads(out)
    assert (code, told["schema"], told["verdict"]) == (0, 1, "warning")
    found = {finding["name"]: finding for finding in told["findings"]}
    assert set(found["readable"]) == {"family", "name", "verdict", "text", "remedy", "value", "unit", "paths"}
    assert found["readable"]["verdict"] == "warning"
    assert sorted(path.count(" = ") for path in found["duplicates"]["paths"]) == [1, 8]
    assert found["whole run"]["value"] > 0


def test_the_machine_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _, out = call(capsys, "--quick")
    assert re.findall(r"^\w+$", out, flags=re.MULTILINE) == ["machine", "job", "disk"]
    assert list(tmp_path.iterdir()) == []


def test_data_without_a_model_and_quickly(images, capsys):
    code, out = call(capsys, "--data", images, "--quick", "--run-dir", "run")
    assert code == 0 and "classes in val" in out
    assert "readable" not in out and "loading" not in out


def test_a_port_that_is_taken(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("", 0)) as taken:
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        _, out = call(capsys, "--quick", "--json")
    [port] = [finding for finding in json.loads(out)["findings"] if finding["name"] == "port"]
    assert port["verdict"] == "warning"


@pytest.mark.parametrize(
    "args, told",
    [
        (["--data", "nowhere"], "--data nowhere does not exist"),
        (["--data", "shapes", "--model", "timm/resnet19"], "resnet19"),
        (["--data", "shapes", *RUN, "--device", "cuda"], "no usable CUDA device"),
        (["--data", "shapes", *RUN, "--run-dir", "shapes/train/disc/01.png"], "is a file"),
        (["--data", "shapes", *RUN, "--precision", "fp16"], "needs a CUDA device"),
    ],
)
def test_what_train_would_refuse_is_a_problem_among_others(args, told, images, capsys):
    code, out = call(capsys, *args, "--quick")
    assert code == 2 and told in out
    assert "file locks" in out or "is a file" in told  # the checks behind it


def test_a_variable_that_makes_no_sense(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANK", "0")
    code, out = call(capsys, "--quick")
    assert code == 2 and "half set" in out and "file locks" in out


def test_ranks_that_do_not_come(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    place = {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**place, "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    code, out = call(capsys, "--quick", "--set", "compute.timeout_minutes=0.02")
    assert code == 2 and re.search(r"problem +process group", out) and "file locks" in out


def test_options_that_make_no_sense(tmp_path):
    with pytest.raises(UserError, match="optim"):
        doctor.main(["--set", "optim.ls=3"], standalone_mode=False)


def test_a_run_folder_with_another_recipe(images, capsys):
    Path("shapes/train/square/00.png").unlink()
    train_here(images, Path("run"))
    before = {file: file.read_bytes() for file in Path("run").rglob("*") if file.is_file()}
    _, out = call(capsys, "--data", images, *RUN, "--run-dir", "run", "--quick")
    assert "holds a run of another recipe" in out
    assert {file: file.read_bytes() for file in Path("run").rglob("*") if file.is_file()} == before


@pytest.mark.slow
def test_two_ranks(images):
    told = json.loads(call_on(2, "ddp_ft.doctor", "--data", images.absolute(), *RUN, "--json"))
    found = {finding["name"]: finding for finding in told["findings"]}
    assert found["process group"]["value"] == found["start"]["value"] == 2
    assert [found[name]["verdict"] for name in ("same data", "same run folder", "clocks")] == ["ok"] * 3
    assert found["leakage"]["verdict"] == "problem"
    assert found["learning"]["value"] > 0 and "16 images per process" in found["memory"]["text"]


def test_help_without_torch():
    script = (
        "import sys; from ddp_ft.cli.main import ddp_ft\n"
        "ddp_ft.main(['doctor', '--help'], standalone_mode=False)\n"
        "print([m for m in ('torch', 'torchvision', 'timm', 'numpy', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert "--quick" in done.stdout and done.stdout.splitlines()[-1] == "[]"
