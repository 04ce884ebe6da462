"""A thread on each rank that notices when another rank dies or falls silent, and then ends this one.

A rank that waits in a collective for a dead one may wait for half an hour. So every rank keeps a connection to rank 0:
when a process dies its operating system closes it at once, and a stopped process or a dead machine sends no more
heartbeats. A rank that notices writes the stacks of its threads to a file and ends.
"""

import faulthandler
import os
import secrets
import selectors
import socket
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from ddp_ft.distributed.world import World, has_failure
from ddp_ft.errors import EXIT_FAILED

# Between two heartbeats, in seconds.
BEAT_SECONDS = 1.0
# How long after another rank's death the main thread may still end by itself, with the better message.
GRACE_SECONDS = 3.0
CONNECT_SECONDS = 10.0

ALIVE, LEAVING, GOODBYE, ALARM = b".", b"q", b"bye", b"!"
# The sockets of this process; forked loader workers close them, as an orphan would hold them open.
_sockets: "weakref.WeakSet[socket.socket]" = weakref.WeakSet()


def _close_in_child() -> None:
    for connection in list(_sockets):
        with suppress(OSError):
            os.close(connection.detach())


os.register_at_fork(after_in_child=_close_in_child)


@contextmanager
def watching(world: World, stacks: Path, silence_seconds: float, one_machine: bool) -> Iterator[None]:
    """Watch the ranks during the block; a rank that leaves it by an exception counts as dead.

    A death is noticed at once, silence after `silence_seconds`; then this process ends with code 1, at most 5 s later.
    `stacks` is the folder for rank_N.txt, the stack of each thread of this rank. A single process watches nothing.
    """
    if world.size == 1 or world.store is None:
        yield
        return
    end = _End(world.rank, stacks)
    watch = _Centre(world, end, silence_seconds, one_machine) if world.is_main else _Post(world, end, silence_seconds)
    thread = threading.Thread(target=watch.run, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        watch.leave(in_peace=False)
        raise
    else:
        watch.leave(in_peace=True)
    finally:
        thread.join(2 * BEAT_SECONDS)


@dataclass
class _End:
    """How this process is ended."""

    rank: int
    stacks: Path
    is_leaving: threading.Event = field(default_factory=threading.Event)

    def because(self, reason: str) -> None:
        """End this process with the stacks written, unless the main thread ends it by itself within a while."""
        if self.is_leaving.wait(GRACE_SECONDS):
            return
        self._write_stacks(reason)
        if self._has_to_report(reason):
            print(f"Error: {reason}. The stack of each rank is in {self.stacks}.", file=sys.stderr, flush=True)  # noqa: T201
        os._exit(EXIT_FAILED)

    def _has_to_report(self, reason: str) -> bool:
        """Whether this rank prints the reason: the lowest that is left, unless a failing rank has printed its own."""
        with suppress(Exception):  # the store may be gone with rank 0
            if has_failure():
                return False
        return self.rank == (1 if reason.startswith("rank 0 ") else 0)

    def _write_stacks(self, reason: str) -> None:
        with suppress(OSError):
            self.stacks.mkdir(parents=True, exist_ok=True)
            with (self.stacks / f"rank_{self.rank}.txt").open("w", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} rank {self.rank}: {reason}\n\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)


class _Centre:
    """The part of rank 0: listens to all others, and passes alarms on."""

    def __init__(self, world: World, end: _End, silence_seconds: float, one_machine: bool) -> None:
        assert world.store is not None
        self.end, self.silence = end, silence_seconds
        host = "127.0.0.1" if one_machine else ""
        self.server = socket.create_server((host, 0), backlog=world.size)
        self.token = secrets.token_hex(8)
        _sockets.add(self.server)
        world.store.set("watchdog", f"{host or socket.gethostname()} {self.server.getsockname()[1]} {self.token}")
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.server, selectors.EVENT_READ)
        self.heard: dict[socket.socket, float] = {}
        self.ranks: dict[socket.socket, str] = {}

    def leave(self, in_peace: bool) -> None:
        if in_peace:
            self._send(GOODBYE)
        self.end.is_leaving.set()

    def run(self) -> None:
        try:
            reason = self._watch()
        finally:
            self.selector.close()
            for connection in [*self.heard, self.server]:
                connection.close()
        if reason:
            self.end.because(reason)

    def _watch(self) -> str:
        """What is wrong, after it was sent to the others; empty if this rank leaves in peace."""
        beat = time.monotonic()
        while not self.end.is_leaving.is_set():
            ready = [key.fileobj for key, _ in self.selector.select(BEAT_SECONDS / 10)]
            troubles = [self._accept() if each is self.server else self._hear(each) for each in ready]  # type: ignore[arg-type]
            now = time.monotonic()
            if now - beat >= BEAT_SECONDS:
                if now - beat > self.silence:  # it was this process that was stopped
                    self.heard = dict.fromkeys(self.heard, now)
                beat = now
                self._send(ALIVE)
            silent = [self.ranks[peer] for peer, heard in self.heard.items() if now - heard > self.silence]
            if silent:
                troubles.append(f"rank {', '.join(silent)} sent no sign of life for {self.silence:g} s")
            if reason := next(filter(None, troubles), ""):
                self._send(ALARM + reason.encode())
                return reason
        return ""

    def _accept(self) -> str:
        peer, _ = self.server.accept()
        peer.settimeout(BEAT_SECONDS)
        _sockets.add(peer)
        try:
            token, _, rank = peer.recv(64).decode().partition("\n")[0].partition(" ")
        except (OSError, UnicodeDecodeError):
            token = rank = ""
        if token != self.token:
            peer.close()  # a stranger
            return ""
        self.ranks[peer], self.heard[peer] = rank, time.monotonic()
        self.selector.register(peer, selectors.EVENT_READ)
        return ""

    def _hear(self, peer: socket.socket) -> str:
        try:
            received = peer.recv(4096)
        except OSError:
            received = b""
        self.heard[peer] = time.monotonic()
        if received and LEAVING not in received:
            return ""
        self.selector.unregister(peer)
        self.heard.pop(peer)
        peer.close()
        return "" if received else f"rank {self.ranks[peer]} died"

    def _send(self, message: bytes) -> None:
        for peer in list(self.heard):
            with suppress(OSError):
                peer.sendall(message + b"\n")


class _Post:
    """The part of every other rank."""

    def __init__(self, world: World, end: _End, silence_seconds: float) -> None:
        assert world.store is not None
        self.end, self.silence = end, silence_seconds
        host, port, token = world.store.get("watchdog").decode().split()
        self.connection = _connect([host, os.environ.get("MASTER_ADDR", host)], int(port))
        _sockets.add(self.connection)
        self.connection.sendall(f"{token} {world.rank}\n".encode())
        self.connection.settimeout(BEAT_SECONDS)

    def leave(self, in_peace: bool) -> None:
        self.end.is_leaving.set()
        with suppress(OSError):
            if in_peace:
                self.connection.sendall(LEAVING)
            self.connection.shutdown(socket.SHUT_RDWR)  # wakes the thread

    def run(self) -> None:
        heard = time.monotonic()
        while not self.end.is_leaving.is_set():
            with suppress(OSError):
                self.connection.sendall(ALIVE)
            before = time.monotonic()
            received = self._hear()
            now = time.monotonic()
            if GOODBYE in (received or b""):
                break
            was_stopped = now - before > self.silence  # it was this process, and not rank 0
            if received is not None or was_stopped:
                heard = now
            if reason := self._trouble(received, now - heard):
                self.end.because(reason)
                return
        self.connection.close()

    def _hear(self) -> bytes | None:
        """The bytes from rank 0: none at all if it died, None if it was silent for a while."""
        try:
            received = self.connection.recv(4096)
            time.sleep(BEAT_SECONDS / 4 if received == ALIVE + b"\n" else 0)
            return received
        except TimeoutError:
            return None
        except OSError:
            return b""

    def _trouble(self, received: bytes | None, silent_for: float) -> str:
        if received == b"":
            return "rank 0 died"
        if received is not None and ALARM in received:
            return received.partition(ALARM)[2].partition(b"\n")[0].decode()
        return f"rank 0 sent no sign of life for {self.silence:g} s" if silent_for > self.silence else ""


def _connect(hosts: list[str], port: int) -> socket.socket:
    """A connection to rank 0, by the first name that resolves to it: its own, or that of the machine with the store."""
    for host in hosts[:-1]:
        with suppress(OSError):
            return socket.create_connection((host, port), timeout=CONNECT_SECONDS)
    return socket.create_connection((hosts[-1], port), timeout=CONNECT_SECONDS)
