"""The README and the page of options keep their word: each of their commands runs, and what they name is there."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from ddp_ft.config.schema import KEYS
from tests.support.commands import run_words
from tests.support.runs import read

ROOT = Path(__file__).resolve().parents[3]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def is_doctor(command):
    return re.search(r"ddp-ft doctor|ddp_ft\.doctor", command) is not None


def commands_of(page):
    blocks = re.findall(r"```bash\n(.*?)```", page, flags=re.DOTALL)
    return [line.split("   #")[0].rstrip() for block in blocks for line in block.splitlines()]


OPTIONS = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
COMMANDS = commands_of(README + OPTIONS)
DOCTORS = [
    command
    for command in [*COMMANDS, *commands_of((ROOT / "docs" / "doctor.md").read_text(encoding="utf-8"))]
    if is_doctor(command)
]
# Run by other means: the demo and this suite themselves, and what needs a second node or a network.
ELSEWHERE = {
    "./launch/demo.sh": "tests/launch/test_demo.py",
    "./launch/test.sh": "this suite",
    "pip install .": "tests/system/docs/test_package.py",
    "./launch/tensorboard.sh runs": "tests/launch/test_tensorboard.py",
}
TINY = "timm/test_resnet"

# One process runs all of them: the fixture is a training.
pytestmark = pytest.mark.xdist_group("readme")


def is_train(command):
    return ("--data ~/pets --model" in command or "--data scans.csv" in command) and not is_doctor(command)


def is_about_runs(command):
    return any(word in command for word in ("evaluate", "predict", "ddp-ft average", "ddp-ft report"))


@pytest.fixture(scope="module")
def pets(shapes, tmp_path_factory):
    """A trained run for the commands that use one, and the folder from which they start."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "pets").symlink_to(shapes)
    images = sorted((shapes / "train").rglob("*.png"))
    lines = [f"{image},{20 + number / 2},{number // 3}" for number, image in enumerate(images)]
    (folder / "scans.csv").write_text("\n".join(["path,age,patient", *lines]))
    options = f"--model {TINY} --weights none --image-size 32 --epochs 2 --run-dir runs/pets"
    assert run(f"python -m ddp_ft.train --data pets {options}", folder).returncode == 0
    return folder


def run(command, folder):
    """The command with this interpreter, two processes at most, and 127.0.0.1 for a head node."""
    words = shlex.split(command.replace("./launch", str(ROOT / "launch")))
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HOME": str(folder)}
    environment |= {
        "DDP_FT_PYTHON": sys.executable,
        "NPROC_PER_NODE": "2",
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
    }
    return run_words(words, environment, folder)


TRAININGS = sorted({command for command in COMMANDS if is_train(command) and "2 node01" not in command})


@pytest.mark.slow  # the quick suite starts torchrun in test_resume.py and test_end_to_end.py
@pytest.mark.parametrize("command", TRAININGS)
def test_training_commands(command, pets, tmp_path):
    """With a tiny model of random weights in place of a pretrained one, since there is no network."""
    command = re.sub(r"--model \S+", f"--model {TINY} --weights none --image-size 32 --epochs 1", command)
    command = command.replace("~/pets", "pets").replace("--nproc_per_node=4", "--nproc_per_node=2 --standalone")
    done = run(f"{command} --run-dir {tmp_path / 'run'}", pets)
    assert done.returncode == 0, done.stderr
    assert read(tmp_path / "run", "summary.json")["status"] == "done"


@pytest.mark.slow
def test_commands_on_a_finished_run(pets):
    """In their order: the second evaluation uses the average."""
    commands = [command for command in COMMANDS if is_about_runs(command)]
    for command in sorted(commands, key=lambda command: "average" not in command):
        command = command.replace("runs/pets-convnext_tiny.in12k_ft_in1k", "runs/pets").replace("~/pets", "pets")
        done = run(command, pets)
        assert done.returncode == 0, done.stderr
        assert any(text in done.stdout for text in ("accuracy", "12 rows in predictions.csv", "average", "report.html"))


@pytest.mark.parametrize("command", [command for command in COMMANDS if re.match("ddp-ft (models|config)", command)])
def test_commands_that_show(command, pets):
    done = run(command.replace("convnext_tiny.in12k_ft_in1k", "test_convnext"), pets)
    assert done.returncode == 0, done.stderr
    assert "stages" in done.stdout or "probe:" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted(set(DOCTORS)))
def test_doctor_commands(command, pets):
    """Images and machine are sound."""
    command = re.sub(r"--model \S+", f"--model {TINY} --weights none --image-size 32", command).replace(
        "~/pets", "pets"
    )
    done = run(command.replace("--nproc_per_node", "--standalone --nproc_per_node"), pets)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 problems" in done.stdout or '"verdict": "warning"' in done.stdout


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("ddp-ft fetch")])
def test_fetch_needs_a_network_and_says_so(command, pets):
    done = run(command, pets)
    assert done.returncode == 0 or (done.returncode == 2 and "Traceback" not in done.stderr), done.stderr


def test_every_command_is_run_by_a_test():
    rest = [c for c in COMMANDS if not is_train(c) and not is_about_runs(c) and not is_doctor(c)]
    rest = [c for c in rest if not re.match("ddp-ft (fetch|models|config) ", c)]
    rest = [
        c for c in rest if c not in ELSEWHERE and not c.startswith(("tensorboard ", "./launch/multi_node.sh 2 node01 "))
    ]
    assert rest == []


def test_every_option_and_key_it_names_exists():
    text = README.split("## Train")[1].split("## Use the result")[0] + OPTIONS
    flags = {key.flag for key in KEYS.values()} | {"--run-dir", "--config", "--set", "--dry-run", "--extend", "--help"}
    flags |= {"--tune", "--processes"}
    flags |= {"--list", "--layers", "--recipe", "--last", "--best", "--output", "--also", "--tta"}  # of other commands
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) - {"--nproc_per_node"} - {"--nproc"} <= flags
    assert set(
        re.findall(
            r"`((?:data|model|head|freeze|probe|train|optim|schedule|loss|augment|eval|ema|checkpoint|log|compute)\.\w+)`",
            text,
        )
    ) <= set(KEYS)


def test_every_file_it_names_is_there():
    named = set(re.findall(r"`((?:ddp_ft|launch|docs|tests)/[\w./]+)`", README))
    assert named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_it_ends_with_what_is_unproven():
    assert re.findall(r"^## (.*)$", README, flags=re.MULTILINE)[-1] == "Unproven"
