"""The group `ddp-ft`: what it lists, and that a command's libraries are imported only when it is called."""

import re
import subprocess
import sys

import pytest
from click.testing import CliRunner

from ddp_ft import __version__
from ddp_ft.cli.main import ddp_ft

COMMANDS = (
    "train", "kfold", "evaluate", "predict", "doctor", "export", "fetch", "replay", "average", "submit", "runs",
    "report", "models", "config", "completion",
)  # fmt: skip


def test_help_lists_every_command_with_a_line_on_it():
    listed = CliRunner().invoke(ddp_ft, ["--help"]).output.partition("Commands:")[2]
    assert tuple(re.findall(r"^  (\w+)  +\w.*", listed, re.MULTILINE)) == COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_own_help(name):
    outcome = CliRunner().invoke(ddp_ft, [name, "--help"], prog_name="ddp-ft")
    assert outcome.exit_code == 0 and outcome.output.startswith(f"Usage: ddp-ft {name} ")


def test_an_unknown_command_is_an_error():
    outcome = CliRunner().invoke(ddp_ft, ["trian"])
    assert outcome.exit_code == 2 and "No such command 'trian'. Did you mean train?" in outcome.output
    outcome = CliRunner().invoke(ddp_ft, ["fit"])
    assert outcome.exit_code == 2 and "Here that is ddp-ft train." in outcome.output
    assert "No such option" in CliRunner().invoke(ddp_ft, ["--trian"]).output


@pytest.mark.parametrize("arguments", [["--version"], ["train", "--version"]])
def test_one_version(arguments):
    assert CliRunner().invoke(ddp_ft, arguments).output.split()[-1] == __version__


@pytest.mark.parametrize("arguments", [["--help"], ["config", "--list"], ["config", "optim.lr"], ["train", "--help"]])
def test_without_torch(arguments):
    script = (
        "import sys; from ddp_ft.cli.main import ddp_ft\n"
        f"ddp_ft.main({arguments!r}, standalone_mode=False)\n"
        "print([m for m in ('torch', 'torchvision', 'timm', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"
