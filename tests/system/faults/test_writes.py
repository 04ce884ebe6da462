"""Killed between any two changes of the disk, a run goes on to the same bytes."""

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.runs import arguments
from tests.system.faults.comparing import assert_same_result, assert_whole
from tests.system.faults.fault import Fault, watch_changes
from tests.system.faults.forks import run_forked

STRIDE, PARTS = 91, 4
# The slow step takes a sixth of all changes, which differ from part to part; this variable has it take each one.
EACH = bool(os.environ.get("DDP_FT_TEST_EVERY_CHANGE"))


def options(data: Path, run: Path) -> list[str]:
    recipe = ["--ema", "0.9", "--mixup", "0.2", "--set", "checkpoint.every_steps=3"]
    return arguments(data, run, *recipe, net="with_batch_norm", epochs=2)


def count_changes(run: Path, tally: Path) -> None:
    """Append a byte to `tally` for each change of the run folder."""
    tally.touch()
    descriptor = os.open(tally, os.O_WRONLY)
    _watch(run, lambda number: os.write(descriptor, b"."))


def kill_at(run: Path, number: int) -> None:
    """SIGKILL this process right before its `number`-th change of the run folder."""
    _watch(run, lambda now: os.kill(os.getpid(), signal.SIGKILL) if now == number else None)


def cut_power_at(run: Path, number: int) -> None:
    """The same, and of every file only that remains which was made durable."""
    durable: dict[int, int] = {}
    _remember(run, durable)

    def strike(now: int) -> None:
        if now == number:
            _forget(run, durable)
            os.kill(os.getpid(), signal.SIGKILL)

    _watch(run, strike, durable)


def _watch(run: Path, strike: Callable[[int], object], durable: dict[int, int] | None = None) -> None:
    number = 0
    # While one thread strikes, the others change nothing more: else a file that the cut has just emptied would still
    # get its final name.
    alone = threading.RLock()

    def tell(event: str, path: str) -> None:
        nonlocal number
        if path.startswith(str(run)):
            with alone:
                number += 1
                strike(number)
                if event == "os.fsync" and durable is not None:
                    durable[Path(path).stat().st_ino] = Path(path).stat().st_size

    watch_changes(tell)


def _remember(run: Path, durable: dict[int, int]) -> None:
    for file in _files(run):
        durable[file.stat().st_ino] = file.stat().st_size


def _forget(run: Path, durable: dict[int, int]) -> None:
    for file in _files(run):
        with suppress(FileNotFoundError):  # another thread renames or deletes meanwhile
            os.truncate(file, min(file.stat().st_size, durable.get(file.stat().st_ino, 0)))


def _files(run: Path) -> list[Path]:
    paths = [Path(folder, name) for folder, _, names in os.walk(run) for name in names]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


@pytest.fixture(scope="module")
def whole(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """An unbroken run, and how often it changes the disk."""
    folder = tmp_path_factory.mktemp("whole")
    codes, said = run_forked(
        1, options(shapes, folder / "r"), prepare=count_changes, values=(folder / "r", folder / "n")
    )
    assert codes == [0], said
    return folder / "r", (folder / "n").stat().st_size


def break_and_go_on(data: Path, run: Path, whole: Path, break_at: Callable[[Path, int], None], number: int) -> None:
    codes, said = run_forked(1, options(data, run), prepare=break_at, values=(run, number))
    assert codes[0] in (-signal.SIGKILL, 0), said  # 0: the order of a background writer's calls has varied
    assert_whole(run)
    codes, said = run_forked(1, options(data, run))
    assert codes == [0], f"killed before change {number}:\n{said}"
    assert_same_result(run, whole)


@pytest.mark.parametrize("break_at", [kill_at, cut_power_at])
def test_broken_before_some_changes(shapes, whole, tmp_path, break_at):
    unbroken, changes = whole
    assert changes > 50  # the faults do strike
    for number in range(STRIDE // 2, changes + 1, STRIDE if break_at is kill_at else 2 * STRIDE):
        break_and_go_on(shapes, tmp_path / str(number), unbroken, break_at, number)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("break_at", [kill_at, cut_power_at])
def test_broken_before_many_changes(shapes, whole, tmp_path, break_at, part):
    unbroken, changes = whole
    for number in range(1 + part, changes + 1, PARTS) if EACH else range(1 + 6 * part, changes + 1, 6 * PARTS):
        break_and_go_on(shapes, tmp_path / str(number), unbroken, break_at, number)


def test_broken_while_going_on(shapes, whole, tmp_path):
    """A start that is killed soon, again and again, loses nothing of what the starts before it did."""
    unbroken, changes = whole
    run = tmp_path / "r"
    for number in range(changes // 2, changes, 9):
        codes, said = run_forked(1, options(shapes, run), prepare=kill_at, values=(run, number))
        assert codes[0] in (-signal.SIGKILL, 0), said
        assert_whole(run)
    codes, said = run_forked(1, options(shapes, run))
    assert codes == [0], said
    assert_same_result(run, unbroken)


def test_killed_between_the_last_checkpoint_and_its_links(shapes, whole, tmp_path):
    """No step is left then, and so no save that would put `last` and `best` right."""
    run = tmp_path / "r"
    fault = Fault(str(tmp_path / "fault"), "kill", "checkpoints/last", count=4)
    assert run_forked(1, options(shapes, run), more=fault.environment())[0] == [-signal.SIGKILL]
    assert (run / "checkpoints/step_00000008").is_dir()
    codes, said = run_forked(1, options(shapes, run))
    assert codes == [0], said
    assert_same_result(run, whole[0])
    for link in ("last", "best"):
        assert (run / "checkpoints" / link).readlink() == (whole[0] / "checkpoints" / link).readlink()
