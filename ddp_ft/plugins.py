"""Objects by name: 'pkg.mod:attr' or 'file.py:attr', imported when they are needed."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from ddp_ft.errors import UserError, nearest, typed_line


def is_reference(name: str) -> bool:
    """Whether `name` refers to code ('file.py:attr' or 'pkg.mod:attr') and is not a short name."""
    return ":" in name and not name.startswith(":") and not name.endswith(":")


def load_object(reference: str) -> Any:
    """The attribute that 'pkg.mod:attr' or 'file.py:attr' names.

    Raises UserError if the file, the module or the attribute is not there, or the code fails on import.
    """
    where, _, attribute = reference.rpartition(":")
    try:
        module = _module_from_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except ImportError as error:
        raise UserError(f"Module '{where}' could not be imported: {error}") from error
    if not hasattr(module, attribute):
        public = [name for name in vars(module) if not name.startswith("_")]
        raise UserError(f"{where} has no '{attribute}'.", nearest(attribute, public))
    return getattr(module, attribute)


def _module_from_file(file: Path) -> ModuleType:
    if not file.is_file():
        raise UserError(f"No such file: {file}", "Expected FILE.py:NAME, where FILE.py defines NAME.")
    name = f"ddp_ft_user_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None  # a .py suffix always has a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pickling to loader workers looks classes up here
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{file} could not be imported: {typed_line(error)}") from error
    return module
