"""`train --dry-run` without data and model: what is the user's own is tried alone, and soon."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ddp_ft.errors import UserError
from ddp_ft.train import train

CODE = """
import torch
import torch.nn.functional as F
from torch import nn

class Loss(nn.Module):
    def forward(self, outputs, targets):
        return F.cross_entropy(outputs, targets, reduction="none")

def error(outputs, targets): return (outputs - targets).abs().sum(1)

def mean(outputs, targets): return F.cross_entropy(outputs, targets)

class Head(nn.Linear): pass

class Wrong:
    higher_is_better = False
    def update(self, predictions, targets): self.shape = predictions.shape
    def compute(self): return self.shape[0] / 4

def darker(image): return image // 2

class Data:
    targets = ["a", "b"] * 20
    def __init__(self, role): pass
    def __len__(self): return 40
    def __getitem__(self, i): return torch.zeros(3, 20, 30, dtype=torch.uint8), self.targets[i]

def data(role): return Data(role) if role == "train" else None

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 4, 9, 8), nn.Linear(4, num_classes)
    def forward(self, images): return self.head(self.first(images).mean((2, 3)))
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tried(capsys: pytest.CaptureFixture[str], *options: str) -> list[str]:
    assert train.main([*options, "--dry-run"], standalone_mode=False) == 0
    return capsys.readouterr().out.splitlines()


def test_each_piece_alone_and_all_together(code: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each has a line: what it was called with, and what it returned. Nothing is written."""
    pieces = {
        "--loss own.py:Loss": "outputs 8 x 3 float32 and targets 8 int64, returned 8 losses",
        "--set eval.extra=own.py:Wrong": "the metric wrong, called with predictions 8 x 3 float32 and targets 8 int64, "
        "returned 2",
        "--head own.py:Head": "features 2 x 64 float32, returned 2 x 3 outputs; 195 parameters",
        "--set augment.transform=own.py:darker": "an image 3 x 64 x 64 uint8",
        "--model own.py:Net": "images B x 3 x 64 x 64 float32, returned B x 3 outputs",
    }
    for options, expected in pieces.items():
        [line] = tried(capsys, *options.split(), "--image-size", "64")
        name = options.split("=")[-1].split()[-1]
        assert line.startswith(f"{name}: ") and expected in line
    [line] = tried(capsys, "--data", "own.py:data")
    assert (
        line.startswith("own.py:data: 34 train, 6 val, where val is drawn from train") and "3 x 20 x 30 uint8" in line
    )
    lines = tried(capsys, *" ".join(pieces).split(), "--metric", "wrong")
    assert len(lines) == 4, "a head is tried in the model"
    assert sorted(each.name for each in code.iterdir() if each.name != "__pycache__") == ["own.py"]


@pytest.mark.parametrize(
    ("task", "expected"),
    [("multi-label", "targets 8 x 3 float32, returned 8"), ("regression", "targets 4 x 1 float32, returned 4")],
)
def test_with_the_targets_of_the_task(code: Path, capsys: pytest.CaptureFixture[str], task: str, expected: str) -> None:
    [line] = tried(capsys, "--loss", "own.py:error", "--task", task)
    assert expected in line


def test_what_breaks_its_contract_and_what_is_none_of_the_users_own(code: Path) -> None:
    for options, expected in (
        ("--loss own.py:mean", r"shape \(\) for 8 samples"),
        ("--loss own.py:error", "own.py, line 10"),
        ("--model own.py:Head", "own.py:Head"),
        ("--loss own.py:Loss --metric right", "eval.metric = 'right'"),
        ("--loss focal", "--data and --model must be given"),
        ("--loss own.py:Loss --model timm/test_resnet", "--data must be given"),
        ("--loss own.py:Loss --data pets", "--model must be given"),
        ("--data own.py:darker", "own.py:darker"),
    ):
        with pytest.raises(UserError, match=expected):
            train.main([*options.split(), "--dry-run"], standalone_mode=False)


def test_a_loss_needs_only_torch(code: Path) -> None:
    """As it is to be checked about as soon as torch is imported."""
    script = (
        "import sys; from ddp_ft.train import train;"
        "train.main(['--loss', 'own.py:Loss', '--set', 'eval.extra=own.py:Wrong', '--dry-run'], standalone_mode=False);"
        "print([m for m in ('timm', 'torchvision', 'torchmetrics', 'PIL', 'matplotlib') if m in sys.modules])"
    )
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=here, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[]"
