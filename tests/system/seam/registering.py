"""The toys' lines in the tables of names: one for each thing that is added."""

import contextlib
import importlib
import io
import itertools
import os
import signal
from pathlib import Path
from typing import Any

from ddp_ft.cli.main import COMMANDS
from ddp_ft.config.tasks import TASKS, TaskEntry
from ddp_ft.data.processors import INPUTS, PROCESSORS
from ddp_ft.data.splits.layouts import LAYOUTS
from ddp_ft.data.targets.registry import KINDS
from ddp_ft.models.libraries.registry import LIBRARIES
from ddp_ft.trackers.services.registry import SERVICES
from tests.system.seam import lines_service, rows_library
from tests.system.seam.rows_source import Marks


def register(but: str = "") -> None:
    """All lines, but for that of one table."""
    KINDS["marks"] = Marks()
    TASKS["mark-rows"] = TaskEntry("tests.system.seam.marks_task:MarksTask", ("marks",), "accuracy")
    PROCESSORS["rows"] = "tests.system.seam.rows_processor:RowsProcessor"
    INPUTS["rows"] = "tests.system.seam.rows_source"
    LAYOUTS.insert(0, "tests.system.seam.rows_source")
    LIBRARIES["toy"] = "tests.system.seam.rows_library"
    # A service is named as the library that it needs.
    SERVICES["json"] = f"{lines_service.__file__}:Lines"
    COMMANDS["count"] = ("tests.system.seam.count_command", "How many rows a file has.")
    if but == "PROCESSORS":
        del PROCESSORS["rows"]
    if but == "ARGUMENTS":
        rows_library.arguments = lambda name, outputs, image_size: {"num_classes": outputs, "depth": 1}


def call(module: str, args: list[Any], but: str = "") -> str:
    """What a command prints in a process that knows the toys."""
    register(but)
    command = getattr(importlib.import_module(module), module.rpartition(".")[2])
    with contextlib.redirect_stdout(io.StringIO()) as stream:
        command.main([str(argument) for argument in args], standalone_mode=False)
    return stream.getvalue()


def write_rows(file: Path, rows: int = 40, most: int = 7) -> Path:
    """Rows of 2 to `most` numbers; a number's mark is 1 if it is above the row's mean."""
    import random

    draw, lines = random.Random(0), []
    for _ in range(rows):
        numbers = [draw.randint(-20, 20) for _ in range(draw.randint(2, most))]
        marks = [int(number > sum(numbers) / len(numbers)) for number in numbers]
        lines.append(f"{' '.join(map(str, numbers))}|{' '.join(map(str, marks))}")
    file.write_text("\n".join(lines) + "\n")
    return file


def call_alone(module: str, args: list[Any]) -> str:
    """The same, without a launcher."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        del os.environ[name]
    return call(module, args)


def call_and_die(module: str, args: list[Any], samples: int) -> None:
    """The same, killed while this process reads its sample of that number."""
    from tests.system.seam.rows_processor import RowsTransform

    seen, usual = itertools.count(1), RowsTransform.__call__

    def counted(transform: RowsTransform, sample: Any) -> Any:
        if next(seen) == samples:
            os.kill(os.getpid(), signal.SIGKILL)
        return usual(transform, sample)

    RowsTransform.__call__ = counted  # type: ignore[method-assign]
    call(module, args)


def list_and_count(rows: Path) -> tuple[str, str]:
    """What the list of commands has on the toy, and what that prints."""
    from click.testing import CliRunner

    from ddp_ft.cli.main import ddp_ft

    register()
    listed = CliRunner().invoke(ddp_ft, ["--help"]).output
    [line] = [line for line in listed.splitlines() if line.split()[:1] == ["count"]]
    return line.split(maxsplit=1)[1].strip(), CliRunner().invoke(ddp_ft, ["count", str(rows)]).output
