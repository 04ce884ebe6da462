"""Images drawn beside the training, by a process of their own.

Not by a thread: it would take turns with the training loop for the interpreter, and loaders that fork while it holds a
lock, as an import does, would wait for that lock for ever. Not by multiprocessing: its new processes run the main
module again. Orders and images are files, so that neither side ever waits for the other.
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

from ddp_ft.files import write_bytes, write_text

LOOKS_EVERY = 0.02  # seconds, while the end of a run waits for its images
# How often the drawing process looks whether its parent still lives, in seconds; it usually hears of it at once.
PATIENCE = 5.0


@dataclass(frozen=True)
class _Order:
    """An image that is being drawn, or waits to be: which one it is, and the file that says how."""

    tag: str
    step: int
    file: Path

    @property
    def image(self) -> Path:
        return self.file.with_suffix(".png")

    @property
    def failure(self) -> Path:
        return self.file.with_suffix(".txt")


class Studio:
    """Draws images in the order in which they are asked for. Its process begins with the first one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = Path()
        self._orders: list[_Order] = []
        self._count = 0

    def order(self, tag: str, step: int, draw: Callable[..., bytes], *arguments: Any) -> None:
        """Have `draw(*arguments)` make an image, as the bytes of a PNG; both travel pickled.

        What still waits of that tag is dropped: whoever evaluates faster than images are drawn sees those of the
        newest evaluation. Raises OSError if orders cannot be written.
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
        """Tag, step and PNG of each image that is drawn, or will be within so many seconds, each once.

        One that could not be drawn is told of on stderr.
        """
        deadline = time.monotonic() + patience
        while self._orders:
            order = self._orders[0]
            if order.image.exists():
                yield order.tag, order.step, order.image.read_bytes()
            elif order.failure.exists() or not self._lives():
                reason = order.failure.read_text() if order.failure.exists() else "the drawing process has died"
                print(f"Warning: {order.tag} could not be drawn: {reason}", file=sys.stderr)  # noqa: T201
            elif time.monotonic() < deadline:
                time.sleep(LOOKS_EVERY)
                continue
            else:
                return
            self._orders.pop(0)
            order.image.unlink(missing_ok=True)

    def close(self) -> None:
        """End the process, whatever it is doing."""
        if self._process is None:
            return
        self._process.kill()
        self._process.communicate()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._process, self._orders = None, []

    def _open(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            self._folder = Path(tempfile.mkdtemp(prefix="ddp_ft_images_"))
            # In a session of its own: signals are for the training, which ends this process itself.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ddp_ft.trackers.figure_process"], stdin=subprocess.PIPE, start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )  # fmt: skip
        return self._process

    def _lives(self) -> bool:
        return self._process is not None and self._process.poll() is None


def work() -> None:
    """The drawing process: draw what the files named on stdin say, until stdin or the parent ends."""
    os.nice(5)  # of a core that both want, training gets the larger part
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
        write_text(file.with_suffix(".txt"), " ".join(f"{type(error).__name__}: {error}".split()), durable=False)


if __name__ == "__main__":
    work()
