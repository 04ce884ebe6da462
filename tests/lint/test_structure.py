"""The limits that keep the code readable, and what may import what."""

import ast
import configparser
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "ddp_ft"
MODULES = sorted(PACKAGE.rglob("*.py"))
MAX_FUNCTION_LINES, MAX_FILE_LINES = 60, 400
# Names that say nothing about what is inside, and so collect everything.
EMPTY_NAMES = {"utils", "util", "helper", "helpers", "manager", "managers", "misc", "common"}
WITHOUT_TORCH = [
    "errors", "version", "config", "plugins", "training.schedule", "distributed.environment", "slurm",
    "trackers.services.host", "trackers.services.registry", "cli.completion",
]  # fmt: skip


def _name(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", MODULES, ids=_name)
def test_sizes(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_FILE_LINES
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    too_long = {f.name: n for f in functions if (n := f.end_lineno - f.lineno + 1) > MAX_FUNCTION_LINES}
    assert not too_long


def test_names_say_what_is_inside() -> None:
    assert [_name(file) for file in MODULES if EMPTY_NAMES.intersection(file.stem.split("_"))] == []


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_imports_without_torch(module: str) -> None:
    script = (
        f"import sys, ddp_ft.{module};"
        "print([m for m in ('torch', 'torchvision', 'timm', 'torchmetrics', 'numpy') if m in sys.modules])"
    )
    outcome = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert outcome.stdout.strip() == "[]"


def _contract(name: str) -> configparser.SectionProxy:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser[f"importlinter:contract:{name}"]


def test_the_contract_keeps_torch_out_of_the_same_modules() -> None:
    assert set(_contract("no-torch-below")["source_modules"].split()) == {f"ddp_ft.{name}" for name in WITHOUT_TORCH}
