"""What shells complete behind ddp-ft: asked as a person asks, by a real bash where there is one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from ddp_ft.cli.completion import cached_names, store_names
from ddp_ft.cli.main import COMMANDS, ddp_ft
from ddp_ft.config.user_cache import FOLDER_VARIABLE

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["timm/resnet18", "timm/resnet18.a1_in1k", "timm/vit_tiny", "torchvision/resnet18"]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    store_names(NAMES)


@pytest.fixture
def program(tmp_path):
    """A folder with a ddp-ft that fails if it imports torch."""
    (tmp_path / "bin").mkdir()
    file = tmp_path / "bin" / "ddp-ft"
    script = "import sys; sys.modules['torch'] = None; sys.argv[0] = 'ddp-ft'; from ddp_ft.cli.main import main; main()"
    file.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -c "{script}" "$@"\n')
    file.chmod(0o755)
    return file.parent


def complete(*words):
    """The values for the last word, in process; as zsh and fish ask."""
    environment = {
        "_DDP_FT_COMPLETE": "fish_complete",
        "COMP_WORDS": " ".join(["ddp-ft", *words]),
        "COMP_CWORD": words[-1],
    }
    done = CliRunner().invoke(ddp_ft, [], prog_name="ddp-ft", env=environment)
    return [line.partition(",")[2].partition("\t")[0] for line in done.output.splitlines() if line]


@pytest.mark.parametrize(
    ("words", "wanted", "unwanted"),
    [
        (["tr"], {"train"}, {"evaluate"}),
        (["train", "--re"], {"--recipe"}, {"--lr"}),
        (["train", "--recipe", "l"], {"linear_probe", "lp_ft"}, {"full"}),
        (["train", "--schedule", "co"], {"constant", "cosine"}, {"linear"}),
        (["train", "--model", "timm/r"], {"timm/resnet18"}, {"timm/resnet18.a1_in1k", "timm/vit_tiny"}),
        (["train", "--model", "timm/resnet18."], {"timm/resnet18.a1_in1k"}, {"timm/resnet18"}),
        (["train", "--model", "vi"], {"vit_tiny"}, {"timm/vit_tiny"}),
        (["train", "--track", "w"], {"wandb"}, {"mlflow"}),
        (["train", "--set", "optim.l"], {"optim.lr=", "optim.l2_sp="}, {"optim.name="}),
        (["train", "--set", "compute.compile=r"], {"compute.compile=regional"}, {"compute.compile=true"}),
        (["train", "--set", "compute.recompute="], {"compute.recompute=true", "compute.recompute=false"}, set()),
        (["config", "opt"], {"optim", "optim.lr"}, {"train.epochs"}),
        (["config", "--recipe", "fi"], {"fine_tune"}, {"full"}),
        (["models", "torchv"], {"torchvision/resnet18"}, set()),
        (["evaluate", "--device", "c"], {"cpu", "cuda"}, {"auto"}),
        (["completion", ""], {"bash", "zsh", "fish"}, set()),
    ],
)
def test_values(words, wanted, unwanted):
    found = set(complete(*words))
    assert wanted <= found and not unwanted & found


def test_all_commands():
    assert set(COMMANDS) <= set(complete(""))


def test_names_of_models_come_from_a_file_of_the_same_libraries(tmp_path, monkeypatch):
    assert cached_names() == NAMES
    monkeypatch.setattr("importlib.metadata.version", lambda library: "0.0")  # as if it was installed since
    assert cached_names() is None
    store_names(["timm/new"])
    assert cached_names() == ["timm/new"] and len(list((tmp_path / "cache").iterdir())) == 1
    monkeypatch.setenv(FOLDER_VARIABLE, "")
    store_names(NAMES)
    assert cached_names() is None


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_a_real_bash(program, tmp_path):
    """Its own words, divided at = and :, its own replies, and no torch."""
    (tmp_path / "run dir").mkdir()
    lines = {
        "ddp-ft tr": ["train"],
        "ddp-ft train --sched": ["--schedule"],
        "ddp-ft train --set optim.lr": ["optim.lr="],
        "ddp-ft train --set compute.compile=": ["false", "true", "regional"],
        "ddp-ft train --set=compute.compile=re": ["regional"],
        "ddp-ft train --recipe=lp": ["lp_ft"],
        "ddp-ft train --lr 0.1 --model timm/v": ["timm/vit_tiny"],
        "ddp-ft runs ./ru": [],  # left to bash: folders
    }
    asked = "\n".join(f'ask "{line}"; echo' for line in lines)
    script = f"""
eval "$(ddp-ft completion bash)"
compopt() {{ echo compopt "$@" >&2; }}
ask() {{
    COMP_LINE=$1 COMP_POINT=${{#1}}
    IFS=' ' read -r -a COMP_WORDS <<< "$(sed 's/=/ = /g' <<< "$1")"
    COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)) COMPREPLY=()
    _ddp_ft_completion ddp-ft
    printf '%s ' "${{COMPREPLY[@]}}"
}}
{asked}
"""
    environment = {**os.environ, "PATH": f"{program}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "--norc", "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert [line.split() for line in done.stdout.splitlines()] == list(lines.values()), done.stderr
    assert done.stderr.splitlines() == ["compopt -o nospace", "compopt -o dirnames"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_lines_for_a_shell(shell):
    done = CliRunner().invoke(ddp_ft, ["completion", shell])
    assert done.exit_code == 0 and f"_DDP_FT_COMPLETE={shell}_complete" in done.output
    if shutil.which(shell):
        checked = subprocess.run([shell, "-n"], input=done.output, capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr
