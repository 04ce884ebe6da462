"""Paths in two arrays: a sequence of str as any other, which forked workers need not copy."""

import gc
import multiprocessing
import pickle
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ddp_ft.data.sources.files import LabelledFileSource
from ddp_ft.data.sources.paths import Paths

NAMES = ["a/1.jpg", "", "ä/\N{SNOWMAN} 2.jpg", "line\nbreak", "no utf-8 \udcff", "b/3.jpg"]


def test_is_a_sequence_of_the_strings() -> None:
    paths = Paths.of(NAMES)
    assert list(paths) == NAMES and len(paths) == len(NAMES)
    assert [paths[k] for k in range(len(NAMES))] == NAMES
    assert (paths[-1], paths[np.int64(2)]) == (NAMES[-1], NAMES[2])
    assert list(paths[1:4]) == NAMES[1:4] and list(paths[4:2]) == [] and list(paths[-2:]) == NAMES[-2:]
    assert NAMES[3] in paths and "c" not in paths and paths.index("b/3.jpg") == 5
    for outside in (len(NAMES), -len(NAMES) - 1):
        with pytest.raises(IndexError):
            paths[outside]
    with pytest.raises(ValueError, match="steps"):
        paths[::2]


def test_nothing_is_a_sequence_too() -> None:
    paths = Paths.of([])
    assert (list(paths), len(paths), list(Paths.joined([])), list(paths[:3])) == ([], 0, [], [])


def test_more_than_one_block_of_strings() -> None:
    names = [f"{k:x}" for k in range(70_000)]
    paths = Paths.of(names)
    assert list(paths) == names and paths[66_000] == names[66_000]


def test_parts() -> None:
    paths = Paths.of(NAMES)
    chosen = np.array([True, True, False, True, False, False])
    assert list(paths.where(chosen)) == [NAMES[0], NAMES[1], NAMES[3]]
    assert list(paths.where(~chosen[[0] * 6])) == []
    assert Paths.joined([paths[:2], paths[2:2], paths[2:]]) == paths
    assert paths != paths[1:] and paths != NAMES


def test_travels_as_arrays() -> None:
    paths = Paths.of(NAMES)
    outside: list[pickle.PickleBuffer] = []
    inside = pickle.dumps(paths, protocol=5, buffer_callback=outside.append)
    assert pickle.loads(inside, buffers=outside) == paths
    assert b"jpg" not in inside


def test_a_nul_is_refused() -> None:
    with pytest.raises(ValueError, match="NUL"):
        Paths.of(["a\0b"])


COUNT = 200_000


def _private_growth(source: LabelledFileSource, results: "multiprocessing.SimpleQueue[int]") -> None:
    """In a worker: by how many bytes its own memory, shared with nobody, grows while it looks at every name once."""
    gc.collect()
    before = _private_bytes()
    for index in range(len(source)):
        source.name(index)
    results.put(_private_bytes() - before)


def _private_bytes() -> int:
    text = Path("/proc/self/smaps_rollup").read_text()
    return sum(1024 * int(found) for found in re.findall(r"Private_\w+: +(\d+) kB", text))


def _growth_in_a_fork(paths: Sequence[str]) -> int:
    source = LabelledFileSource(Path("/data"), [], np.empty(0, np.int64))
    source.paths, source.targets = paths, np.zeros(len(paths), np.int64)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    process = context.Process(target=_private_growth, args=(source, results))
    process.start()
    growth = results.get()
    process.join()
    return growth


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux tells what memory is shared")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_worker_does_not_copy_the_paths_that_it_reads() -> None:
    names = [f"n{k % 1000:08d}/n{k % 1000:08d}_{k:08d}.JPEG" for k in range(COUNT)]
    paths = Paths.of(names)
    assert _growth_in_a_fork(paths) < 2_000_000
    assert _growth_in_a_fork(names) > 10_000_000  # a list of str is copied page by page
