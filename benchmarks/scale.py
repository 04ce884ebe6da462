"""What a large folder costs: makes one of tiny real images, and starts a run on it twice, part by part.

The first start reads the folder, the second what the first has stored (a cache folder of its own). The functions are
those that `train` calls. CPU time is beside wall time, since the latter depends on what else the machine does.
"""

import argparse
import io
import json
import multiprocessing
import os
import re
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image

from ddp_ft.config.data import DataConfig
from ddp_ft.config.schema import AugmentConfig
from ddp_ft.config.user_cache import FOLDER_VARIABLE
from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.data.image.processor import ImageTransform
from ddp_ft.data.image.transforms import train_transform
from ddp_ft.data.loader import Reader, TrainLoader
from ddp_ft.data.sampler import GlobalOrderSampler
from ddp_ft.data.splits import folder as folder_splits
from ddp_ft.data.splits.open import Splits, open_splits
from ddp_ft.files import to_json, write_text

T = TypeVar("T")
BATCH, WORKERS, STEPS = 256, 2, 40
Row = tuple[str, float, float]


def make_folder(root: Path, files: int, classes: int) -> None:
    """That many images of 8 x 8 pixels, evenly in class folders; nothing if the folder is there already."""
    if root.is_dir():
        return
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (10, 20, 30)).save(stream, "JPEG", quality=50)
    for label in range(classes):
        folder = root / f"n{label:08d}"
        folder.mkdir(parents=True)
        for number in range(label * files // classes, (label + 1) * files // classes):
            (folder / f"{folder.name}_{number:08d}.JPEG").write_bytes(stream.getvalue())


def _timed(rows: list[Row], part: str, work: Callable[[], T]) -> T:
    wall, cpu = time.perf_counter(), time.process_time()
    value = work()
    rows.append((part, time.perf_counter() - wall, time.process_time() - cpu))
    return value


@contextmanager
def _timing(rows: list[Row], *names: str) -> Any:
    """Within the block, times of these functions of `folder_splits`."""
    before = {name: getattr(folder_splits, name) for name in names}

    def wrapped(name: str) -> Callable[..., Any]:
        return lambda *args: _timed(rows, f"  of it {name}", lambda: before[name](*args))

    for name in names:
        setattr(folder_splits, name, wrapped(name))
    try:
        yield
    finally:
        for name in names:
            setattr(folder_splits, name, before[name])


def start(root: Path, record: Path) -> tuple[list[Row], dict[str, float]]:
    """All that a start does with the data, up to the first batch; and the memory of this process and of a worker."""
    rows: list[Row] = []
    before = _megabytes("self", "Rss")
    stored = _timed(rows, "split.json is read", lambda: json.loads(record.read_text())) if record.exists() else None
    with _timing(rows, "load_index", "list_roles", "fingerprint", "store_index", "divide_pool", "_subset"):
        splits = _timed(rows, "open_splits", lambda: open_splits(DataConfig(path=root), 0, stored))
    if stored is None:
        written = {"fingerprint": splits.fingerprint, **splits.record}
        _timed(rows, "split.json is written", lambda: write_text(record, to_json(written)))
        del written
    splits.record.clear()
    stored = None  # it has the names of all images
    sampler = GlobalOrderSampler(len(splits.train), BATCH, 1, 0, seed=0)
    _timed(rows, "order of the first epoch", lambda: sampler.share(0))
    memory = {"rank: grown by, MB": _megabytes("self", "Rss") - before, "rank: most, MB": _most_megabytes()}
    return rows, memory | _load(rows, splits, sampler)


def _load(rows: list[Row], splits: Splits, sampler: GlobalOrderSampler) -> dict[str, float]:
    size = Preprocess((8, 8), (0.5,) * 3, (0.5,) * 3, "bilinear")
    reader = Reader(splits.train, ImageTransform(train_transform(size, AugmentConfig())), WORKERS)
    loader = TrainLoader(reader, sampler, None, range(min(STEPS, sampler.steps_per_epoch)))
    batches = iter(loader)
    late = 0.0
    _timed(rows, "first batch of the workers", lambda: next(batches))
    early = _of_workers()
    for _ in batches:
        late = _of_workers() or early
    count = len(loader) * BATCH // WORKERS
    return {
        f"worker: its own after {count} samples, MB": late, "worker: grown since its first batch, MB": late - early,
        "paths and labels, MB": sum(part.paths.text.nbytes + part.paths.starts.nbytes + part.targets.nbytes
                                    for part in (splits.train, splits.val)) / 1e6,
    }  # fmt: skip


def _of_workers() -> float:
    """Private memory of the worker that has most."""
    return max((_megabytes(child.pid, r"Private_\w+") for child in multiprocessing.active_children()), default=0.0)


def _megabytes(process: Any, what: str) -> float:
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:  # ended
        return 0.0
    return sum(int(found) for found in re.findall(rf"^{what}: +(\d+) kB", text, re.MULTILINE)) / 1e3


def _most_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def _in_a_process(root: Path, record: Path) -> tuple[list[Row], dict[str, float]]:
    """In a process of its own, as a start has; not one of a pool, which may have no workers."""
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    process = context.Process(target=_answer, args=(root, record, answers))
    process.start()
    answer: tuple[list[Row], dict[str, float]] = answers.get()
    process.join()
    return answer


def _answer(root: Path, record: Path, answers: Any) -> None:
    torch.set_num_threads(1)
    answers.put(start(root, record))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1_300_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--root", type=Path, help="where it is made, or is already")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = given.root or Path(name) / "data"
        begun = time.perf_counter()
        make_folder(root, given.files, given.classes)
        print(f"made {given.files} files in {time.perf_counter() - begun:.0f} s", flush=True)
        time.sleep(2.5)  # what was changed a moment ago is not stored
        os.environ[FOLDER_VARIABLE] = str(Path(name) / "cache")
        for title in ("first", "second"):
            rows, memory = _in_a_process(root, Path(name) / "split.json")
            print(f"\n{title} start, load {os.getloadavg()[0]:.1f}\n\n| part | wall s | CPU s |\n|---|---|---|")
            print("\n".join(f"| {part} | {wall:.2f} | {cpu:.2f} |" for part, wall, cpu in rows))
            print("\n".join(f"| {what} | {value:.1f} | |" for what, value in memory.items()), flush=True)
        sizes = [file.stat().st_size / 1e6 for file in (Path(name) / "split.json", *(Path(name) / "cache").iterdir())]
        print(f"\nsplit.json {sizes[0]:.1f} MB, stored index {sum(sizes[1:]):.1f} MB")
        if given.root is None:
            shutil.rmtree(root)


if __name__ == "__main__":
    main()
