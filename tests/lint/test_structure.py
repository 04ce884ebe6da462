"""The limits that keep the code readable, and what may import what."""

import ast
import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "ddp_ft"
MODULES = sorted(PACKAGE.rglob("*.py"))
MAX_FUNCTION_LINES, MAX_FILE_LINES = 60, 400
MAX_TOP_MODULES, MAX_OWN_IMPORTS, MAX_PARAMETERS, MAX_FACE = 12, 12, 5, 10
# What is above a limit, with how far: it may only fall.
MANY_IMPORTS = {
    "diagnostics.examine_run": 15, "diagnostics.step_replay": 14, "diagnostics.stored_run": 16,
    "inference.averager": 13, "reporting.facts": 13, "run.phases": 15, "run.start": 20,
    "training.build": 21,
}  # fmt: skip
MANY_PARAMETERS = {
    "data.sampler:GlobalOrderSampler.__init__": 8, "models.build:build_model": 6,
    "run_folder.checkpoints:Checkpoints.save": 6, "run_folder.model_folder:describe_model": 6,
}  # fmt: skip
# Names that say nothing about what is inside, and so collect everything.
EMPTY_NAMES = {"utils", "util", "helper", "helpers", "manager", "managers", "misc", "common"}
WITHOUT_TORCH = [
    "errors", "files", "texts", "version", "config", "plugins", "training.schedule", "distributed.environment", "slurm",
    "trackers.services.host", "trackers.services.registry", "cli.completion", "cli.early_checks",
    "tasks.metric_table",
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


def test_the_top_has_few_modules() -> None:
    assert len([file for file in PACKAGE.glob("*.py") if file.stem != "__init__"]) <= MAX_TOP_MODULES


def _over(counts: dict[str, int], limit: int) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count > limit}


def _module(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts)


def _own_imports(file: Path) -> int:
    """How many of the package's modules a file imports, wherever in it."""
    tree, found = ast.parse(file.read_text(encoding="utf-8")), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ddp_ft":
            folder = ROOT.joinpath(*str(node.module).split("."))
            found |= {
                f"{node.module}.{a.name}" if (folder / f"{a.name}.py").exists() else node.module for a in node.names
            }
    return len(found)


def test_own_imports() -> None:
    """A module that needs many others does many things. What is above the limit may only fall."""
    found = _over({_module(file): _own_imports(file) for file in MODULES}, MAX_OWN_IMPORTS)
    assert found == MANY_IMPORTS


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    arguments = function.args
    names = [each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def _is_command(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """click calls it with one argument for each option that stands above it."""
    return any("command" in ast.unparse(decorator) for decorator in function.decorator_list)


def test_parameters() -> None:
    """What is above the limit may only fall."""
    counts = {}
    for file in MODULES:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for owner in ast.walk(tree):
            for node in ast.iter_child_nodes(owner):
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not _is_command(node):
                    name = f"{owner.name}.{node.name}" if isinstance(owner, ast.ClassDef) else node.name
                    counts[f"{_module(file)}:{name}"] = _parameters(node)
    assert _over(counts, MAX_PARAMETERS) == MANY_PARAMETERS


def test_no_callables_as_fields_of_training() -> None:
    """A batch is followed from the loader to the loss by reading names."""
    found = []
    for file in (PACKAGE / "training").glob("*.py"):
        for owner in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(owner, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in owner.decorator_list):
                fields = [node for node in owner.body if isinstance(node, ast.AnnAssign)]
                found += [
                    f"{owner.name}.{ast.unparse(f.target)}" for f in fields if "Callable" in ast.unparse(f.annotation)
                ]
    assert found == []


def test_where_click_is() -> None:
    """Whatever else is called without a command line."""
    files = [file for file in MODULES if re.search(r"^ *(import|from) click\b", file.read_text(encoding="utf-8"), re.M)]
    entries = {PACKAGE / f"{name}.py" for name in ("train", "evaluate", "predict", "export", "doctor")}
    assert {file for file in files if file.parent != PACKAGE / "cli"} == entries


def test_packages_have_no_code_of_their_own() -> None:
    """`__init__.py` is a docstring, or a face of few names; the root's gives `load` when it is asked for."""
    for file in PACKAGE.rglob("*/__init__.py"):
        nodes = ast.parse(file.read_text(encoding="utf-8")).body[1:]
        assert all(isinstance(node, ast.ImportFrom) or ast.unparse(node).startswith("__all__ =") for node in nodes), (
            file
        )
        assert sum(len(node.names) for node in nodes if isinstance(node, ast.ImportFrom)) <= MAX_FACE, file


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


@pytest.mark.parametrize("page", ["docs/design.md", "CONTRIBUTING.md"])
def test_files_that_pages_name_are_there(page: str) -> None:
    """Names with a folder, from the package or from the top; NAME stands for anything."""
    named = set(re.findall(r"`((?:\w+/)+\w+\.(?:py|sh|tsv))[:`]", (ROOT / page).read_text(encoding="utf-8")))
    assert len(named) > 10
    assert [
        n for n in sorted(named) if "NAME" not in n and not (PACKAGE / n).exists() and not (ROOT / n).exists()
    ] == []
