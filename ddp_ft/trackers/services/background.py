"""A service beside the loop: the loop only puts rows into a queue and never waits."""

import json
import pickle
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import IO, Any

from ddp_ft.contracts import TRAIN
from ddp_ft.trackers.base import Tracker
from ddp_ft.trackers.services.base import Log, Start
from ddp_ft.trackers.services.registry import SERVICES

# The most rows and images that wait. A run logs about a row a second: enough for many minutes without a network.
MOST_WAITING, MOST_IMAGES = 10_000, 32
# The longest time for closing, at the end of a run and after a request to stop.
CLOSE_SECONDS, STOP_SECONDS = 30.0, 4.0
# With this process's search path, so that modules of the working folder do not take precedence.
COMMAND = "import sys; sys.path[:] = {path!r}; from ddp_ft.trackers.services.host import main; main()"


class Background(Tracker):
    """Feeds the process of a service (`host`) from a queue of bounded length.

    If the service is too slow, images are dropped first. If it fails, one warning is printed and it is left out. The
    next start of the run sends the rows that are missing.
    """

    def __init__(self, name: str, start: Start, log: Log) -> None:
        self.name = name
        self._print = log
        self._changed = threading.Condition()
        self._waiting: deque[tuple[str, tuple[Any, ...]]] = deque([("start", (name, SERVICES[name], start))])
        self._dropped = self._failed = self._finished = False
        self._closed = 0.0  # at which time.monotonic()
        start.folder.mkdir(exist_ok=True)
        with (start.folder / f"{name}.log").open("w", encoding="utf-8") as file:
            command = [sys.executable, "-c", COMMAND.format(path=sys.path)]
            # In a session of its own, for Ctrl-C is meant for the run, which ends it in order.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, start_new_session=True
            )
        works = {"feed": self._feed, "listen": self._listen}
        self._threads = [threading.Thread(target=w, name=f"{name}-{what}", daemon=True) for what, w in works.items()]
        for thread in self._threads:
            thread.start()

    def log(self, split: str, step: int, epoch: float, values: Mapping[str, float], phase: str = TRAIN) -> None:
        """Pass a row on."""
        row = {"step": step, "epoch": epoch, "split": split, "phase": phase, **values, "time": time.time()}
        self._put("log", row)

    def image(self, tag: str, step: int, png: bytes) -> None:
        """Pass an image on."""
        self._put("image", tag, step, png)

    def warn(self, step: int, text: str) -> None:
        """Pass a warning on."""
        self._put("warn", step, text)

    def finish(self, settings: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Pass the end of the run on."""
        self._finished = True
        self._put("finish", dict(settings), dict(metrics))

    def hang_up(self) -> None:
        """Announce that no more rows will come. The time limit of `close` begins now."""
        if not self._closed:
            self._closed = time.monotonic()
            self._put("close")

    def close(self) -> None:
        """Wait until the service has taken all, for a bounded time since `hang_up`, and end its process."""
        self.hang_up()
        seconds = CLOSE_SECONDS if self._finished else STOP_SECONDS
        try:
            self._process.wait(max(0.0, self._closed + seconds - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._fail(f"did not take all rows within {seconds:g} s; the next start of the run sends the rest")
        finally:
            self._process.kill()
            self._process.wait()
            with self._changed:
                self._failed = True  # ends the thread that feeds
                self._changed.notify()
        for thread in self._threads:
            thread.join()

    def _put(self, method: str, *arguments: Any) -> None:
        with self._changed:
            if self._failed or not self._make_room(method):
                return
            self._waiting.append((method, arguments))
            self._changed.notify()

    def _make_room(self, method: str) -> bool:
        """Whether there is room for one more item, if necessary after dropping the oldest image."""
        images = sum(name == "image" for name, _ in self._waiting) if method == "image" else 0
        if len(self._waiting) < MOST_WAITING and images < MOST_IMAGES:
            return True
        if not self._dropped:
            self._dropped = True
            self._warn("is too slow: images are left out, and rows if that does not suffice")
        oldest = next((place for place, (name, _) in enumerate(self._waiting) if name == "image"), None)
        if oldest is not None:
            del self._waiting[oldest]
        return oldest is not None or method in ("finish", "close")

    def _feed(self) -> None:
        stream = self._process.stdin
        assert stream is not None
        with suppress(OSError):  # its process has ended; the other thread reports it
            while item := self._next():
                pickle.dump(item, stream)
                stream.flush()
        with suppress(OSError):
            stream.close()

    def _next(self) -> tuple[str, tuple[Any, ...]] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._failed)
            return None if self._failed else self._waiting.popleft()

    def _listen(self) -> None:
        stream: IO[bytes] | None = self._process.stdout
        assert stream is not None
        error = ""
        with stream:
            for line in stream:
                message = json.loads(line)
                error = message.get("error", error)
                if "print" in message:
                    self._print(message["print"])
        code = self._process.wait()
        if code or not self._closed:
            why = error or f"its process ended with exit code {code}"
            self._fail(f"failed and is left out from now on: {why}")

    def _fail(self, why: str) -> None:
        with self._changed:
            if self._failed:
                return
            self._failed = True
            self._waiting.clear()
            self._changed.notify()
        self._warn(why)

    def _warn(self, text: str) -> None:
        print(f"Warning: {self.name} {text}", file=sys.stderr, flush=True)  # noqa: T201
