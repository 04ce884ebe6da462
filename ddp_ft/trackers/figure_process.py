"""Images drawn during the training by another process.

Not by a thread: it would share the interpreter with the training loop, and loaders that fork while it holds a lock, for
example of an import, would wait for that lock for ever. Not by multiprocessing: its new processes run the main module
again. Orders and images are files, so that neither side ever waits for the other.
"""

import os
import pickle
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddp_ft.errors import typed_line
from ddp_ft.files import write_bytes, write_text

LOOKS_EVERY = 0.02  # seconds, while the end of a run waits for its images
# Seconds between the drawing process's checks for its parent, whose end usually closes its input at once.
PATIENCE = 5.0


@dataclass(frozen=True)
class _Order:
    """An image that is being drawn or waits, and the file from which it is drawn."""

    tag: str
    step: int
    file: Path


class Studio:
    """Draws images in the order of their requests. Its process starts with the first one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = Path()
        self._orders: list[_Order] = []
        self._count = 0

    def order(self, tag: str, step: int, draw: Callable[..., bytes], *arguments: Any) -> None:
        """Have `draw(*arguments)` make an image, as the bytes of a PNG; both travel pickled.

        Waiting images of that tag are dropped: if evaluations are faster than drawing, those of the newest are drawn.
        Raises OSError if orders cannot be written.
        """
        process = self._open()
        for outdated in [each for each in self._orders if each.tag == tag and each.file.exists()]:
            outdated.file.unlink(missing_ok=True)
            self._orders.remove(outdated)
        self._count += 1
        order = _Order(tag, step, self._folder / f"{self._count:06d}.order")
        order.file.write_bytes(pickle.dumps((draw, arguments)))
        self._orders.append(order)
        assert process.stdin is not None
        process.stdin.write(f"{order.file}\n".encode())
        process.stdin.flush()

    def finished(self, patience: float = 0.0) -> Iterator[tuple[str, int, bytes]]:
        """Tag, step and PNG of each image that is drawn within `patience` seconds, each once; failures are printed."""
        deadline = time.monotonic() + patience
        while self._orders:
            order = self._orders[0]
            image, failure = order.file.with_suffix(".png"), order.file.with_suffix(".txt")
            if image.exists():
                yield order.tag, order.step, image.read_bytes()
            elif failure.exists() or self._process is None or self._process.poll() is not None:
                reason = failure.read_text() if failure.exists() else "the drawing process has died"
                print(f"Warning: {order.tag} could not be drawn: {reason}", file=sys.stderr)  # noqa: T201
            elif time.monotonic() < deadline:
                time.sleep(LOOKS_EVERY)
                continue
            else:
                return
            self._orders.pop(0)
            image.unlink(missing_ok=True)

    def close(self) -> None:
        """Kill the process, even if it is drawing."""
        if self._process is None:
            return
        self._process.kill()
        self._process.communicate()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._process, self._orders = None, []

    def _open(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            self._folder = Path(tempfile.mkdtemp(prefix="ddp_ft_images_"))
            # In its own session: signals are for the training, which ends this process itself.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ddp_ft.trackers.figure_process"], stdin=subprocess.PIPE, start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )  # fmt: skip
        return self._process


def work() -> None:
    """The drawing process: draw the orders whose files are named on stdin, until stdin or the parent ends."""
    os.nice(5)  # training gets more of a core that both need
    parent, waiting, folder = os.getppid(), b"", None
    while os.getppid() == parent:
        if not select.select([0], [], [], PATIENCE)[0]:
            continue
        read = os.read(0, 65536)
        if not read:
            break
        *lines, waiting = (waiting + read).split(b"\n")
        for line in lines:
            file = Path(os.fsdecode(line))
            folder = file.parent
            _draw(file)
    if folder is not None:  # of a parent that was killed
        shutil.rmtree(folder, ignore_errors=True)


def _draw(file: Path) -> None:
    try:
        order = file.read_bytes()
        file.unlink()
    except FileNotFoundError:  # a newer one took its place
        return
    try:
        draw, arguments = pickle.loads(order)  # by our own parent, from a folder that is the user's alone
        write_bytes(file.with_suffix(".png"), draw(*arguments), durable=False)
    except Exception as error:  # of many kinds; training does not depend on it
        write_text(file.with_suffix(".txt"), typed_line(error), durable=False)


if __name__ == "__main__":
    work()
