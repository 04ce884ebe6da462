"""The pages on commands and on trackers: each of their commands runs."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from ddp_ft.cli.main import COMMANDS, ddp_ft
from ddp_ft.config.user_cache import FOLDER_VARIABLE
from tests.support.commands import run_words
from tests.support.runs import train_here

ROOT = Path(__file__).resolve().parents[3]
PAGES = ("commands.md", "trackers.md")
FOUND = [
    line
    for page in PAGES
    for block in re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    for line in block.splitlines()
]
SHOWS = [command for command in FOUND if command.startswith("ddp-ft ")]
TRAINS = [command for command in FOUND if "ddp_ft.train" in command]


def run(words, folder):
    assert words[0] == "python"
    environment = {
        "PATH": "/usr/bin:/bin", "HOME": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    return run_words(words, environment, folder, timeout=200)


@pytest.fixture(scope="module")
def folder(shapes, tmp_path_factory):
    where = tmp_path_factory.mktemp("pages")
    (where / "pets").symlink_to(shapes)
    train_here(shapes, where / "runs" / "pets")
    return where


@pytest.mark.slow
@pytest.mark.parametrize("command", SHOWS)
def test_commands_that_show(command, folder, monkeypatch):
    """In this process, as each of them would import timm anew."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder / "cache"))
    words = shlex.split(command.replace("convnext_tiny.in12k_ft_in1k", "test_convnext"))
    done = CliRunner().invoke(ddp_ft, words[1:], catch_exceptions=False)
    assert done.exit_code == 0 and done.output


@pytest.mark.slow
@pytest.mark.parametrize("command", TRAINS)
def test_training_commands(command, folder):
    for name in re.search(r"--track (\S+)", command)[1].split(","):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    command = re.sub(r"--model \S+", "--model timm/test_resnet --weights none --image-size 32 --epochs 1", command)
    done = run(shlex.split(command.replace("~/pets", "pets")), folder)
    assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr


def test_what_the_pages_name_exists():
    assert set(FOUND) == {*SHOWS, *TRAINS, "pip install 'ddp_ft[mlflow,wandb]'"}
    text = "".join((ROOT / "docs" / page).read_text(encoding="utf-8") for page in PAGES)
    assert set(re.findall(r"ddp-ft ([a-z]+)", text)) <= set(COMMANDS)
    extras = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    assert "\nmlflow =" in extras and "\nwandb =" in extras
