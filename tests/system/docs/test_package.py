"""What is published: the wheel works without the clone, and the sdist has all that is needed to make and test it."""

import configparser
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from ddp_ft import __version__
from tests.support.images import write_digits

ROOT = Path(__file__).resolve().parents[3]


def pip(*arguments):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("setuptools")
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "ddp_ft", source / "ddp_ft", ignore=shutil.ignore_patterns("__pycache__"))
    done = pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", source / "dist", source)
    assert done.returncode == 0, done.stderr
    return next((source / "dist").glob("ddp_ft-*.whl"))


def test_what_is_inside(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    package = {str(file.relative_to(ROOT)) for file in (ROOT / "ddp_ft").rglob("*") if file.is_file()}
    package = {name for name in package if "__pycache__" not in name}
    assert {"ddp_ft/py.typed", "ddp_ft/config/recipes/lp_ft.yaml", "ddp_ft/slurm/job.sh"} <= package
    assert {name for name in names if name.startswith("ddp_ft/")} == package
    assert {name.split("/")[0] for name in names} == {"ddp_ft", f"ddp_ft-{__version__}.dist-info"}
    assert any(name.endswith("LICENSE") for name in names)
    entry_points = next(name for name in names if name.endswith("entry_points.txt"))
    assert "ddp-ft = ddp_ft.cli.main:main" in zipfile.ZipFile(wheel).read(entry_points).decode()


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


def test_the_sdist_has_what_the_repository_has(tmp_path):
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no clone")
    files = {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}
    for name in files:
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "source" / name)
    script = f"from setuptools.build_meta import build_sdist; build_sdist({str(tmp_path)!r})"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path / "source", capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / f"ddp_ft-{__version__}.tar.gz") as archive:
        inside = {name.partition("/")[2] for name in archive.getnames() if not archive.getmember(name).isdir()}
    made = {name for name in inside if name == "PKG-INFO" or "egg-info/" in name}
    assert inside - made == {name for name in files if not name.startswith(".")}


def test_the_readme_as_a_page_elsewhere():
    """Links into the repository lead nowhere there; of images the text stands in their place."""
    targets = re.findall(r"(?<!!)\[[^\]]*\]\(([^)]*)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert [target for target in targets if not target.startswith("https://")] == []


def test_one_version_and_a_citation():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__ and citation["cff-version"] == "1.2.0"
    assert citation["message"] and citation["title"] and citation["authors"] == [{"name": "The ddp_ft developers"}]
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    assert setup["metadata"]["version"] == "attr: ddp_ft.version.__version__"
    assert setup["metadata"]["license"] == citation["license"]


def test_the_changelog_has_the_form_that_tools_read():
    """Keep a Changelog: versions, in them kinds of changes, in them lists."""
    lines = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    headings = [line for line in lines if line.startswith("#")]
    assert headings[:2] == ["# Changelog", "## [Unreleased]"]
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    for heading in headings[1:]:
        known = heading.removeprefix("### ") in kinds
        assert known or re.fullmatch(r"## \[(Unreleased|\d+\.\d+\.\d+)\]( - \d{4}-\d\d-\d\d)?", heading), heading


@pytest.mark.slow
def test_from_the_wheel_alone(wheel, tmp_path):
    """A new environment with this one's libraries, and not a file of the clone: train on digits, and predict."""
    import site

    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True, timeout=100)
    python = tmp_path / "venv/bin/python"
    own = next((tmp_path / "venv/lib").glob("python*")) / "site-packages"
    (own / "libraries.pth").write_text("\n".join(site.getsitepackages()))
    done = pip("--python", python, "install", "--no-deps", "--no-index", "--force-reinstall", wheel)
    assert done.returncode == 0, done.stderr
    digits = write_digits(tmp_path / "digits")
    for extra in [*digits.glob("train/*/*[1-9].png"), *digits.glob("val/*/*[1-9].png")]:
        extra.unlink()
    environment = {"PATH": f"{tmp_path / 'venv/bin'}:/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}

    def run(*command):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("python", "-c", "import ddp_ft; print(ddp_ft.__file__)").startswith(str(own))
    assert run("ddp-ft", "--version").split()[-1] == __version__
    options = "--model timm/test_resnet --weights none --image-size 32 --epochs 1 --recipe full --device cpu"
    run("ddp-ft", "train", "--data", "digits", "--run-dir", "runs/d", *options.split())
    assert " done " in run("ddp-ft", "runs")
    run("python", "-m", "ddp_ft.predict", "runs/d", "digits/val", "--output", "p.csv", "--device", "cpu")
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 1 + len(list(digits.glob("val/*/*.png")))
