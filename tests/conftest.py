"""Fixtures for all tests: nothing may leak from one test into the next, and the small data sets."""

import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

# Imports leave none, and a look for garbage takes longer with each.
gc.disable()
# Under nohup all processes of the tests would ignore it, and some send it.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# Before torch is first imported: the number of threads changes the bits that some tests compare.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.support import images  # noqa: E402
from tests.support.commands import run_torchrun  # noqa: E402

pytest_plugins = ["tests.support.durations"]
# Set by torch, scikit-learn and pytest themselves, at their first import or on the way; the last one by the profiler,
# for as long as the process lives, since the library below torch reads it once.
SET_BY_LIBRARIES = {
    "PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR", "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR",
    "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK", "KINETO_LOG_LEVEL",
}  # fmt: skip


def pytest_collection_finish() -> None:
    """From here on: but never among what was imported, which takes 0.25 s each time."""
    import hypothesis  # noqa: F401  # asks who holds an object that others made, which nobody can answer later

    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _nothing_leaks() -> Iterator[None]:
    """Fail a test that leaves behind an environment variable, a thread, or a process group; and undo it."""
    environment, threads = dict(os.environ), set(threading.enumerate())
    yield
    leaks = [*_restore_environment(environment), *_left_threads(threads), *_left_process_group()]
    if leaks:
        pytest.fail(f"The test leaks {', '.join(leaks)}.", pytrace=False)


def _restore_environment(before: dict[str, str]) -> list[str]:
    changed = [
        name
        for name in sorted({*before, *os.environ})
        if before.get(name) != os.environ.get(name) and name not in SET_BY_LIBRARIES
    ]
    for name in changed:
        if name in before:
            os.environ[name] = before[name]
        else:
            del os.environ[name]
    return changed


def _left_threads(before: set[threading.Thread]) -> list[str]:
    started = [thread for thread in threading.enumerate() if thread not in before and not thread.daemon]
    for thread in started:
        thread.join(timeout=1.0)  # one that is about to end is no leak
    return [f"thread {thread.name}" for thread in started if thread.is_alive()]


def _left_process_group() -> list[str]:
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return []
    distributed.destroy_process_group()
    return ["a process group"]


@pytest.fixture
def torchrun():  # type: ignore[no-untyped-def]
    """torchrun(nproc, args, module="ddp_ft.train", env=None, timeout=120, cwd=None) -> CompletedProcess."""
    return run_torchrun


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's handwritten digits, 32 x 32 grey: train/0..9 (1,500 images) and val/0..9 (297). Read only."""
    return images.write_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn discs, squares and stripes, 48 x 40 RGB: train/ (3 x 10) and val/ (3 x 4). Read only."""
    return images.write_shapes(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the plain net to start from, so that there is something to keep, to pull towards and to probe."""
    import torch

    from tests.support import nets

    torch.manual_seed(7)
    file = tmp_path_factory.mktemp("start") / "weights.pth"
    torch.save(nets.plain().state_dict(), file)
    return file
