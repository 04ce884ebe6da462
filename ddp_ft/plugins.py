"""Objects by name: 'pkg.mod:attr' or 'file.py:attr', imported when they are needed."""

import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from ddp_ft.errors import UserError, nearest, typed_line

# Of the names under which files of the user's own are modules.
_PREFIX = "ddp_ft_user_"


def is_reference(name: str) -> bool:
    """Whether `name` refers to code ('file.py:attr' or 'pkg.mod:attr') and is not a short name."""
    return ":" in name and not name.startswith(":") and not name.endswith(":")


def load_object(reference: str) -> Any:
    """The attribute that 'pkg.mod:attr' or 'file.py:attr' names.

    Raises UserError if the file, the module or the attribute is not there, or the code fails on import.
    """
    where, _, attribute = reference.rpartition(":")
    module = _module_from_file(Path(where)) if where.endswith(".py") else _module_by_name(where, attribute)
    if not hasattr(module, attribute):
        public = [name for name in vars(module) if not name.startswith("_")]
        raise UserError(f"{where} has no '{attribute}'.", nearest(attribute, public))
    return getattr(module, attribute)


def instance_of(reference: str) -> Any:
    """What `load_object` returns, and of a class, or of a function that needs no argument, what it returns when called.

    Raises UserError as `load_object`, and if that call fails.
    """
    found = load_object(reference)
    if not (inspect.isclass(found) or _is_factory(found)):
        return found
    with running(f"{reference}() failed", "It is called without arguments."):
        return found()


def _is_factory(found: Any) -> bool:
    if not inspect.isroutine(found):
        return False
    parameters = inspect.signature(found).parameters.values()
    return not any(p.kind != p.VAR_KEYWORD and p.default is p.empty for p in parameters)


@contextmanager
def running(what: str, hint: str = "") -> Iterator[None]:
    """Around code of the user's own: what it raises becomes a UserError, also if it would end the process; what it
    prints goes to the standard error, since results may go to the standard output."""
    try:
        with redirect_stdout(sys.stderr):
            yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{what}: {explained(error)}.", hint) from error


def explained(error: BaseException) -> str:
    """`typed_line`, and after it the line in the user's own file that it came from, if it came from one."""
    own = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__) if _is_own(frame)]
    place = f" ({Path(own[-1][0]).name}, line {own[-1][1]})" if own else ""
    return f"{typed_line(error)}{place}"


def _is_own(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).startswith(_PREFIX)


def described(tensor: Any) -> str:
    """The shape and dtype of a tensor: "8 x 3 float32"."""
    shape = " x ".join(map(str, tensor.shape)) or "a single"
    return f"{shape} {str(tensor.dtype).removeprefix('torch.')}"


def digest_of(reference: str) -> str | None:
    """The SHA-256 of the file that 'file.py:attr' names; None if there is none."""
    file = Path(reference.rpartition(":")[0])
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.suffix == ".py" and file.is_file() else None


def _module_by_name(where: str, attribute: str) -> ModuleType:
    if not all(part.isidentifier() for part in where.split(".")):
        near = f"Did you mean {where}.py:{attribute}?" if Path(f"{where}.py").is_file() else ""
        expected = "Expected FILE.py:NAME, or the name of a module, package.module:NAME."
        raise UserError(f"'{where}:{attribute}': {where} is no file that ends in .py.", f"{near} {expected}".strip())
    with running(f"Module '{where}' could not be imported"):
        return importlib.import_module(where)


@contextmanager
def _beside(folder: str) -> Iterator[None]:
    """In the block modules of that folder are imported first, as a script's neighbours are; later, by imports within
    functions, after all others."""
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)


def _module_from_file(file: Path) -> ModuleType:
    if not file.is_file():
        raise UserError(f"No such file: {file}", "Expected FILE.py:NAME, where FILE.py defines NAME.")
    name = f"{_PREFIX}{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None  # a .py suffix always has a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pickling to loader workers looks classes up here
    hint = "What a script does belongs under if __name__ == '__main__'."
    with running(f"{file} could not be imported", hint), _beside(str(file.parent.absolute())):
        spec.loader.exec_module(module)
    return module
