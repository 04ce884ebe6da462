"""`ddp-ft submit`: the script it writes, and what it refuses."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from ddp_ft.cli.submit import submit
from ddp_ft.errors import UserError
from ddp_ft.slurm.sbatch import LaunchPlan, render

TRAIN = ["--data", "my pets", "--model", "timm/resnet18.a1_in1k"]


def run(*words: str) -> str:
    outcome = CliRunner().invoke(submit, [*words], standalone_mode=False)
    if outcome.exception:
        raise outcome.exception
    return outcome.stdout


def test_a_whole_script() -> None:
    text = run("--nodes", "2", "--gpus", "4", "--time", "8:00:00", "--partition", "gpu", *TRAIN)
    lines = text.splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    requests = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")}
    assert requests == {
        "--job-name=ddp_ft", "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=4", "--time=8:00:00",
        "--partition=gpu", "--signal=B:USR2@180", "--open-mode=append", "--requeue",
    }  # fmt: skip
    assert lines[-1] == "ddp_ft_job multi_node --data 'my pets' --model timm/resnet18.a1_in1k"


def test_settings() -> None:
    options = ["--processes", "3", "--lead", "60", "--no-requeue", "--python", "/my env/python", "--cpus", "8"]
    text = run(*options, "--memory", "64G", "--sbatch=--exclusive", "--", *TRAIN)
    for line in (
        "export NPROC_PER_NODE=3", "export DDP_FT_LEAD=60", "export DDP_FT_REQUEUE=exit", "#SBATCH --no-requeue",
        "export DDP_FT_PYTHON='/my env/python'", "#SBATCH --cpus-per-task=8", "#SBATCH --mem=64G",
        "#SBATCH --exclusive", "#SBATCH --signal=B:USR2@60",
    ):  # fmt: skip
        assert f"\n{line}\n" in text


def test_words_survive_the_shell() -> None:
    words = ("--run-dir", 'ü $HOME "*" it\'s \\ `x`', "", "a  b")
    text = render(LaunchPlan(words))
    script = "ddp_ft_job() { printf '%s\\0' \"$@\"; }\n" + text.splitlines()[-1]
    shown = subprocess.check_output(["bash", "-c", script], text=True).split("\0")[:-1]
    assert shown == ["single_node", *words]


def test_an_array_has_a_task_for_each_run(tmp_path: Path) -> None:
    runs = tmp_path / "my runs"
    runs.write_text("--lr 1e-3\n# that was the first\n--lr 1e-4\n")
    text = run("--runs", str(runs), *TRAIN)
    assert "\n#SBATCH --array=1-2\n" in text and f"ddp_ft_job array '{runs}' --data" in text
    assert "\n#SBATCH --array=2-2%1\n" in run("--runs", str(runs), "--array", "2-2%1", *TRAIN)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Nothing to train"),
        (["--time", "soon", *TRAIN], "--time soon"),
        (["--memory", "lots", *TRAIN], "--memory lots"),
        (["--kind", "single_node", "--nodes", "2", *TRAIN], "single_node on 2 nodes"),
        (["--kind", "array", *TRAIN], "without --runs"),
        (["--name", "two\nlines", *TRAIN], "line break"),
        (["--sbatch", "exclusive", *TRAIN], "--sbatch exclusive"),
        (["--data", "x"], "--model must be given"),
        (["--lr", "fast", *TRAIN], "--lr|optim.lr"),
        (["--partion", "gpu", *TRAIN], "--partion"),
        (["--runs", "/no/file", *TRAIN], "cannot be read"),
    ],
)
def test_mistakes(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(*words)


def test_a_wrong_line_of_an_array_is_found_before_the_queue(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("--lr 1\n--lr fast\n")
    with pytest.raises(UserError, match="fast"):
        run("--runs", str(tmp_path / "runs"), *TRAIN)


def test_submitting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no sbatch"):
        run("--submit", *TRAIN)
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(f"#!/bin/sh\n/bin/cat >{tmp_path}/script\necho Submitted batch job 5\n")
    sbatch.chmod(0o755)
    assert run("--submit", *TRAIN) == "Submitted batch job 5\n"
    assert (tmp_path / "script").read_text() == run(*TRAIN)
    sbatch.write_text("#!/bin/sh\necho 'invalid partition' >&2\nexit 1\n")
    with pytest.raises(UserError, match="invalid partition"):
        run("--submit", *TRAIN)


@pytest.mark.parametrize("module", ["cli.submit", "cli.slurm_job", "cli.node", "slurm.requeue", "slurm.walltime"])
def test_without_torch(module: str) -> None:
    script = f"import sys, ddp_ft.{module}; print([m for m in ('torch', 'timm', 'numpy') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "[]"
