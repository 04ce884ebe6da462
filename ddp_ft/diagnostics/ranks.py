"""Whether the processes of a job see the same files, versions and time, and how fast they exchange data."""

import hashlib
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path

import torch

from ddp_ft.config.paths import code_file
from ddp_ft.diagnostics.disk import nearest_folder
from ddp_ft.diagnostics.finding import OK, PROBLEM, WARNING, Finding
from ddp_ft.diagnostics.versions import all_versions, differing
from ddp_ft.distributed.world import World
from ddp_ft.run_folder.shared import put_token, seen_by
from ddp_ft.texts import plural

MIB = 2**20
SIZES = (1, 16, 64)  # MiB that are reduced: about a small model's gradients, and DDP's buckets of 25 MiB around it
REPEATS, SMALL_REPEATS = 3, 20
# Gradients of a ResNet-50 (98 MiB) take a second at this, as on gigabit Ethernet.
SLOW_MIB = 100.0
CLOCK_SECONDS = 2.0  # rendezvous and time limits tolerate more; logs of several nodes do not
_ENTRIES = 10_000


@dataclass(frozen=True)
class Seen:
    """What one rank sees. `code` is a hash of ddp_ft's own files, `data` one of the data folder's names. `has_run`: it
    sees the file that rank 0 put into the run folder. `clock` (s): how far its clock is ahead of rank 0's. `troubles`
    are findings of its own."""

    host: str
    versions: dict[str, str] = field(default_factory=dict)
    code: str = ""
    data: str = ""
    has_run: bool = True
    clock: float = 0.0
    troubles: tuple[Finding, ...] = ()


def exchange(world: World, data: Path | None, run_dir: Path, troubles: Sequence[Finding] = ()) -> list[Seen] | None:
    """What each rank sees, on rank 0; None on others. `troubles` are this rank's findings. Collective."""
    token = world.from_main(lambda: _put_token(run_dir))
    mine = Seen(
        host=socket.gethostname(),
        versions=all_versions(),
        code=hash_code(),
        data="" if data is None else hash_names(data),
        troubles=tuple(troubles),
    )
    sees = [True] * world.size if token is None else seen_by(world, nearest_folder(run_dir) / token)
    clocks = _clocks(world)
    seen = world.gather(mine)
    if seen is None:
        return None
    return [replace(each, clock=clocks[rank], has_run=sees[rank]) for rank, each in enumerate(seen)]


def _put_token(run_dir: Path) -> str | None:
    """The name of a file that shows whether the folder is shared; None if it cannot be written."""
    with suppress(OSError):  # the check of the disk reports it
        return put_token(nearest_folder(run_dir))
    return None


def _clocks(world: World) -> list[float]:
    """How far (s) each clock is ahead of rank 0's: the least of three differences, since ranks leave a barrier late."""
    readings = torch.zeros(3, world.size, dtype=torch.float64)
    for reading in readings:
        world.barrier()
        reading[world.rank] = time.time()
    world.sum(readings)
    ahead = (readings - readings[:, :1]).T
    return [float(each[each.abs().argmin()]) for each in ahead]


def hash_code() -> str:
    """A hash of all files of this package: nodes with different ones would train differently."""
    root = Path(__file__).parents[1]
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(root.rglob("*.py")):
        digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def hash_names(data: Path) -> str:
    """A hash of a table's bytes, or of the names in the two upper levels of a data set's folder."""
    digest = hashlib.blake2b(digest_size=8)
    try:
        data = code_file(data) or data
        if data.is_file():
            return hashlib.blake2b(data.read_bytes(), digest_size=8).hexdigest()
        names = sorted(entry.name for entry in os.scandir(data))
        below = (f"{name}/{each}" for name in names for each in _names_in(data / name))
        for name in islice(chain(names, below), _ENTRIES):
            digest.update(os.fsencode(name) + b"\0")
    except OSError as error:
        return f"unreadable: {error.strerror}"
    return digest.hexdigest()


def _names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder)) if folder.is_dir() else []


def compare(seen: Sequence[Seen]) -> Iterator[Finding]:
    """Whether all ranks see the same."""
    different = differing([each.versions for each in seen])
    text = "; ".join(different) or f"on {plural(len(seen), 'rank')}"
    remedy = "Give all nodes the same environment, since results and messages would differ."
    found = Finding("same versions", PROBLEM, text, remedy, float(len(different)), "packages")
    yield found.unless(not different)
    yield _alike("same ddp_ft", "code", seen, "Install the same version everywhere, or share its folder.")
    yield _alike("same data", "data", seen, "Give --data a folder that all nodes mount, with the same files.")
    blind = [rank for rank, each in enumerate(seen) if not each.has_run]
    text, remedy = "shared by all ranks", "Give --run-dir a folder that all nodes mount."
    if blind:
        text = f"rank(s) {_listed(blind)} do not see what rank 0 writes to the run folder"
    yield Finding("same run folder", PROBLEM, text, remedy, float(len(blind)), "ranks").unless(not blind)
    yield clocks(seen)
    for rank, each in enumerate(seen[1:], start=1):
        for trouble in each.troubles:
            yield replace(trouble, text=f"on {each.host} (rank {rank}): {trouble.text}")


def _alike(name: str, what: str, seen: Sequence[Seen], remedy: str) -> Finding:
    other = [rank for rank, each in enumerate(seen) if getattr(each, what) != getattr(seen[0], what)]
    hosts = ", ".join(sorted({seen[rank].host for rank in other}))
    text = f"rank(s) {_listed(other)} on {hosts} have another one than rank 0" if other else "on all ranks"
    return Finding(name, PROBLEM, text, remedy, float(len(other)), "ranks").unless(not other)


def clocks(seen: Sequence[Seen]) -> Finding:
    """Whether all clocks agree."""
    rank = max(range(len(seen)), key=lambda rank: abs(seen[rank].clock))
    apart = abs(seen[rank].clock)
    if apart <= CLOCK_SECONDS:
        return Finding("clocks", OK, f"at most {apart:.1f} s apart", value=apart, unit="s")
    text = f"the clock of rank {rank} ({seen[rank].host}) is {apart:.1f} s off"
    return Finding("clocks", WARNING, text, "Synchronise them (NTP): stop files and logs go by time.", apart, "s")


def _listed(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks[:8])) + (" ..." if len(ranks) > 8 else "")


def measure_reduction(world: World) -> tuple[float, dict[int, float]]:
    """Seconds of the smallest all-reduce, and MiB/s of gradients for each of SIZES. Collective."""
    latency = _time_of(world, 1, SMALL_REPEATS)
    return latency, {size: size / _time_of(world, size * MIB // 4, REPEATS) for size in SIZES}


def _time_of(world: World, values: int, repeats: int) -> float:
    """Seconds of one reduction of that many float32 values, on the slowest rank."""
    vector = torch.zeros(values, device=world.device)
    world.sum(vector)  # connections are made at first use
    world.barrier()
    began = time.perf_counter()
    for _ in range(repeats):
        world.sum(vector)
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)
    return world.slowest((time.perf_counter() - began) / repeats)


def group(world: World, seconds: float) -> Finding:
    """The process group that was formed in `seconds`."""
    backend = "NCCL, gloo for small things" if world.device.type == "cuda" else "gloo"
    text = f"{plural(world.size, 'rank')}, {backend}, formed in {seconds:.1f} s"
    return Finding("process group", OK, text, value=float(world.size), unit="ranks")


def reduction(latency: float, speeds: dict[int, float], hosts: int) -> Finding:
    """How fast gradients are summed over ranks."""
    shown = ", ".join(f"{speed:,.0f} MiB/s at {size} MiB" for size, speed in speeds.items())
    text, fastest = f"{1e3 * latency:.2f} ms, {shown}", max(speeds.values())
    remedy = "Larger models will wait for it. --set compute.compress_gradients=bf16 halves what is sent"
    remedy += "; NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME names a faster network." if hosts > 1 else "."
    return Finding("all-reduce", WARNING, text, remedy, fastest, "MiB/s").unless(fastest >= SLOW_MIB)
