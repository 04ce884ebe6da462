"""docs/deployment.md keeps its word: each of its commands runs, and so does its Python."""

import importlib
import io
import re
import shlex
import subprocess

import pytest
import torch

from ddp_ft.contracts import Evaluation
from ddp_ft.run_folder.evaluations import save_evaluation
from tests.support.runs import call_on
from tests.support.tables import write_csv
from tests.support.trained import write_model, write_run
from tests.system.docs.test_readme import ROOT

PAGE = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines()]


@pytest.fixture(scope="module")
def folder(shapes, tmp_path_factory):
    """Where the page's commands start: a run, its data, and some photos."""
    root = tmp_path_factory.mktemp("deployment")
    (root / "photos").mkdir()
    for name in ("disc", "square"):
        (root / "photos" / f"{name}.png").symlink_to(shapes / "val" / name / "10.png")
    (root / "pets").symlink_to(shapes)
    write_csv(root / "list.csv", {"path": ["photos/disc.png", "photos/square.png"]})
    write_run(root / "runs" / "pets", root / "pets", {1: 0.5})
    write_model(root / "runs" / "tags" / "best", 1, task="multi-label")
    target = torch.eye(3)
    records = {"target": target, "weight": torch.ones(3)}
    save_evaluation(root / "runs" / "tags", "val", Evaluation({}, {"logits": target - 0.8}, records))
    labels = {"image": ["photos/disc.png", "photos/square.png"], "label": ["disc", "square"], "split": ["test"] * 2}
    write_csv(root / "tags.csv", labels)
    return root


@pytest.mark.slow
def test_its_commands_run_in_their_order(folder, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    for command in COMMANDS:
        find, _, command = command.rpartition(" | ")
        if find:
            found = subprocess.run(shlex.split(find), capture_output=True, text=True, check=True)
            monkeypatch.setattr("sys.stdin", io.StringIO(found.stdout))
        words = shlex.split(command)
        capfd.readouterr()
        if words[0] == "torchrun":
            said = call_on(2, words[3], *words[4:], "--device", "cpu")
        else:
            name = words[1] if words[0] == "ddp-ft" else words[2].removeprefix("ddp_ft.")
            function = getattr(importlib.import_module(f"ddp_ft.{name}"), name)
            arguments = words[2:] if words[0] == "ddp-ft" else words[3:]
            assert not function.main(arguments, standalone_mode=False)
            said = capfd.readouterr().out
        assert re.search(r"2 rows in predictions\.|Wrote pets|accuracy|exact_match|disc\.png +[\w, ]+\(", said), command


def test_its_python_runs(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    [program] = blocks("python")
    values = {}
    exec(program, values)
    assert values["outputs"].shape == (1, 3) and len(values["several"]) == 2
    assert values["prediction"].label in capsys.readouterr().out


def test_it_names_all_options_of_the_two_commands():
    from ddp_ft.evaluate import evaluate
    from ddp_ft.export import export
    from ddp_ft.predict import predict

    options = {option for command in (evaluate, export, predict) for each in command.params for option in each.opts}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE)) - {"--nproc"}
    assert named <= options
    own = {option for each in (*predict.params, *evaluate.params) for option in each.opts if option.startswith("--")}
    assert own <= named | {"--devices"}
    assert {"--column", "--top-k", "--format", "--with-preprocessing", "--check", "--check-images"} <= named
