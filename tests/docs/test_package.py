"""`pip install .` gives a package that works without the clone."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def pip(*arguments):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("setuptools")
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "ddp_ft", source / "ddp_ft", ignore=shutil.ignore_patterns("__pycache__"))
    done = pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", source / "dist", source)
    assert done.returncode == 0, done.stderr
    return next((source / "dist").glob("ddp_ft-*.whl"))


def test_what_is_inside(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    modules = {str(file.relative_to(ROOT)) for file in (ROOT / "ddp_ft").rglob("*.py")}
    assert modules | {"ddp_ft/py.typed"} <= set(names)
    assert any(name.endswith("LICENSE") for name in names)
    entry_points = next(name for name in names if name.endswith("entry_points.txt"))
    assert "ddp-ft = ddp_ft.cli:main" in zipfile.ZipFile(wheel).read(entry_points).decode()


def test_it_runs_from_where_it_was_installed(wheel, tmp_path):
    done = pip("install", "--no-deps", "--no-index", "--target", tmp_path / "site", wheel)
    assert done.returncode == 0, done.stderr
    command = (
        [sys.executable, "-P", "-m", "ddp_ft.train"]
        if sys.version_info >= (3, 11)
        else [sys.executable, "-m", "ddp_ft.train"]
    )
    environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [*command, "--help"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and "--data" in done.stdout, done.stderr
