"""What a key of features depends on: a change of any file that makes an image a feature makes another key."""

import shutil
from pathlib import Path

import pytest
import torch

from ddp_ft.config.schema import HeadConfig
from ddp_ft.features import key
from ddp_ft.models import build_model
from tests.support import nets

IMAGE = sorted(each.name for each in (key.PACKAGE / "data/image").glob("*.py"))
OTHERS = [
    "data/rng.py", "data/loader.py", "data/bad_samples/replace.py", "features/extractor.py", "models/backbone.py",
    "models/precision.py",
]  # fmt: skip


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package's files that may be changed."""
    shutil.copytree(key.PACKAGE, tmp_path / "ddp_ft", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(key, "PACKAGE", tmp_path / "ddp_ft")
    return tmp_path / "ddp_ft"


def key_now() -> str:
    torch.manual_seed(0)
    built = build_model(f"{nets.THIS_FILE}:plain", 3, 32, "none", HeadConfig())
    return key.key_of(key.describe_backbone(built, {"device": "cpu"}))


@pytest.mark.parametrize("file", [*(f"data/image/{name}" for name in IMAGE), *OTHERS])
def test_a_file_that_makes_features(package, file):
    before = key_now()
    assert key_now() == before
    with (package / file).open("a") as stream:
        stream.write("\n# changed\n")
    assert key_now() != before


def test_a_file_that_has_no_part_in_them(package):
    before = key_now()
    (package / "training/loop.py").write_text("")
    assert key_now() == before
