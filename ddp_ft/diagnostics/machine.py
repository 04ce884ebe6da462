"""What the machine offers this job: cores, threads, shared memory, open files, ports, names, locks. Free of torch."""

import contextlib
import math
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ddp_ft.diagnostics.finding import NOTE, OK, PROBLEM, WARNING, Finding
from ddp_ft.distributed.environment import usable_cores
from ddp_ft.texts import plural

CGROUP = Path("/sys/fs/cgroup")
MIB = 2**20
# Measured on a CPU: 13, and 10 for each loader worker, while one set of workers trains and another evaluates. Drivers
# of GPUs, the sockets of ranks and services for curves take dozens more.
FILES_OF_A_PROCESS, FILES_OF_A_WORKER = 128, 16
# Batches of a loader worker that are in memory: two that torch's loader has it prepare ahead, and one that it reads.
PREFETCHED = 3
LOCK_BYTES = 2**14  # in /dev/shm, for a worker: some semaphores, of a page each
DEFAULT_PORT = 29500  # torchrun's, without --standalone and an endpoint
NAME_PATIENCE = 5.0  # seconds for a name server


@dataclass(frozen=True)
class Machine:
    """This node. `cores` are those of the affinity, `quota` is the cgroup's limit in cores (None: no limit).
    `shared_bytes` are free in /dev/shm (None: there is none), `memory_bytes` are free for this job. `processes` run on
    this node, with `threads` each."""

    cores: int
    all_cores: int
    quota: float | None
    open_files: int
    shared_bytes: int | None
    memory_bytes: int
    processes: int
    threads: int


def look(processes: int, threads: int) -> Machine:
    """This machine, now."""
    return Machine(
        cores=usable_cores(),
        all_cores=os.cpu_count() or 1,
        quota=cpu_quota(),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        shared_bytes=shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else None,
        memory_bytes=usable_memory(),
        processes=processes,
        threads=threads,
    )


def cpu_quota(root: Path = CGROUP) -> float | None:
    """The CPU time that the cgroup (version 2 or 1) allows, in cores; None without a limit."""
    try:
        quota, _, period = (root / "cpu.max").read_text().partition(" ")
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota = (root / "cpu" / "cpu.cfs_quota_us").read_text()
        return int(quota) / int((root / "cpu" / "cpu.cfs_period_us").read_text()) if int(quota) > 0 else None
    except (OSError, ValueError):
        return None


def usable_memory(root: Path = CGROUP, meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes that may still be taken: those available to the system or to the cgroup, whichever are fewer."""
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        available = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit, used, inactive in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        with contextlib.suppress(OSError, ValueError, KeyError):  # ValueError: "max"
            stat = dict(line.split(" ") for line in (root / used).with_name("memory.stat").read_text().splitlines())
            # The file cache counts as used, and gives way.
            left = int((root / limit).read_text()) - int((root / used).read_text()) + int(stat[inactive])
            available = min(available, left)
    return available


def cores(machine: Machine, workers: int) -> Finding:
    """Whether there are cores for the processes' threads and loader workers (`workers` for each process)."""
    needed = machine.processes * (machine.threads + workers)
    text = f"{machine.cores} of {machine.all_cores} may be used; {machine.processes} x "
    text += f"({plural(machine.threads, 'thread')} + {plural(workers, 'loader worker')}) need {needed}"
    remedy = f"Give the job more cores, or set OMP_NUM_THREADS={max(1, machine.cores // machine.processes)} and fewer "
    found = Finding("cores", WARNING, text, f"{remedy}--workers: they take turns.", float(machine.cores), "cores")
    # Workers wait for disks too, and threads for each other: half again as many do no harm.
    return found.unless(needed <= 1.5 * machine.cores + 1)


def quota(machine: Machine) -> Finding | None:
    """Whether CPU time is limited to less than the cores that may be used; None without a limit."""
    if machine.quota is None:
        return None
    text = f"the cgroup allows the time of {machine.quota:g} of {plural(machine.cores, 'core')}"
    each = max(1, math.floor(machine.quota / machine.processes))
    remedy = f"Threads beyond it are stopped again and again. Set OMP_NUM_THREADS={each} and --workers by it."
    return Finding("cpu quota", WARNING, text, remedy, machine.quota, "cores").unless(machine.quota >= machine.cores)


def threads(machine: Machine, environ: Mapping[str, str], is_cpu: bool) -> Finding:
    """Whether threads leave cores idle or compete for them; `is_cpu`: they compute the model."""
    given = environ.get("OMP_NUM_THREADS", "")
    share = max(1, machine.cores // machine.processes)
    processes = plural(machine.processes, "process", "processes")
    text = f"{machine.threads} for each of {processes} on {plural(machine.cores, 'core')}"
    text += f" (OMP_NUM_THREADS={given})" if given else ""
    remedy, is_idle = f"export OMP_NUM_THREADS={share}", is_cpu and 2 * machine.threads <= share
    if is_idle:
        remedy = f"Cores are idle: {remedy}, or start more processes."
    found = Finding("threads", WARNING, text, remedy, float(machine.threads), "threads")
    return found.unless(machine.threads <= share and not is_idle)


def shared_memory(machine: Machine, workers: int) -> Finding:
    """Whether /dev/shm has room for the locks between the loader's workers; their batches need none of it."""
    free = machine.shared_bytes
    text = "there is no /dev/shm" if free is None else f"{_mib(free)} free in /dev/shm"
    is_enough = not workers or (free or 0) >= LOCK_BYTES * workers
    remedy = "Loader workers cannot start without it, and each process reads its images itself: in a container use "
    return Finding("shared memory", WARNING, text, f"{remedy}docker run --shm-size=1g.").unless(is_enough)


def loader_memory(machine: Machine, workers: int, batch_bytes: int) -> Finding:
    """Whether the batches of the loader's workers fit into memory; `batch_bytes`: one batch of one process."""
    needed = machine.processes * workers * PREFETCHED * batch_bytes
    text = f"{_mib(machine.memory_bytes)} may be used; batches of {plural(workers, 'loader worker')} per process take "
    remedy = "Use fewer --workers, or a smaller --micro-batch: the system kills processes when it is full."
    found = Finding("loader memory", PROBLEM, f"{text}{_mib(needed)}", remedy, machine.memory_bytes / MIB, "MiB")
    return found.unless(needed <= machine.memory_bytes)


def open_files(machine: Machine, workers: int) -> Finding:
    """Whether a process may open enough files."""
    limit, needed = machine.open_files, FILES_OF_A_PROCESS + FILES_OF_A_WORKER * workers
    is_unlimited = limit == resource.RLIM_INFINITY
    text = f"{'unlimited' if is_unlimited else limit}; some {needed} may be needed"
    found = Finding("open files", WARNING, text, f"ulimit -n {max(4096, needed)}", float(limit), "files")
    return found.unless(is_unlimited or limit >= needed)


def port(number: int, is_ours: bool) -> Finding:
    """Whether the port on which processes meet is free; `is_ours`: they have met there already."""
    if is_ours:
        return Finding("port", OK, f"{number}, where the processes have met", value=float(number))
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else one that was just closed counts as taken
        try:
            tried.bind(("", number))
        except OSError as error:
            text = f"{number} cannot be used: {error.strerror}"
            remedy = "Start torchrun with --standalone on one node, else with --rdzv_endpoint=HOST:ANOTHER_PORT."
            return Finding("port", WARNING, text, remedy, float(number))
    return Finding("port", OK, f"{number} is free", value=float(number))


def hostname(name: str, has_peers: bool, patience: float = NAME_PATIENCE) -> Finding:
    """Whether the machine's own name has an address; `has_peers`: other nodes must find it."""
    found: list[str] = []

    def resolve() -> None:
        with contextlib.suppress(OSError, UnicodeError):
            found.extend(str(each[4][0]) for each in socket.getaddrinfo(name, None))

    # In a thread, because a name server may never answer.
    thread = threading.Thread(target=resolve, daemon=True)
    thread.start()
    thread.join(patience)
    addresses = list(dict.fromkeys(found))
    if not addresses:
        verdict, remedy = PROBLEM, "Add it to /etc/hosts or the name server: other nodes must find it."
        if not has_peers:
            verdict, remedy = NOTE, "Add it to /etc/hosts, or start torchrun with --standalone --local_addr=127.0.0.1."
        return Finding("host name", verdict, f"{name} has no address", remedy)
    if has_peers and all(address.startswith("127.") or address == "::1" for address in addresses):
        text = f"{name} has the address {addresses[0]}, which other nodes cannot reach"
        return Finding("host name", WARNING, text, "Start torchrun with --local_addr=ADDRESS, or correct /etc/hosts.")
    return Finding("host name", OK, f"{name} has the address {addresses[0]}")


# For another process, since a lock never stops the one that holds it.
_TRY_LOCK = """
import fcntl, sys
with open(sys.argv[1], "r+") as file:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(3)
    except OSError:
        sys.exit(4)
"""


def locks(folder: Path) -> Finding:
    """Whether a lock on a file of the folder keeps another process out, as the lease of a run folder must."""
    import fcntl

    with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor_") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            text = f"not on this file system: {error.strerror}"
        else:
            done = subprocess.run([sys.executable, "-S", "-c", _TRY_LOCK, file.name], timeout=60)
            if done.returncode == 3:
                return Finding("file locks", OK, "keep other processes out")
            text = "a second process got a lock that was taken"
    remedy = "Two starts in one run folder then see only each other's heartbeats. Mount with locks (nfs: no nolock)."
    return Finding("file locks", WARNING, text, remedy)


def all_of(
    machine: Machine, environ: Mapping[str, str], workers: int, batch_bytes: int, is_cpu: bool
) -> Iterator[Finding]:
    """The findings that follow from the numbers alone."""
    yield cores(machine, workers)
    if found := quota(machine):
        yield found
    yield threads(machine, environ, is_cpu)
    yield shared_memory(machine, workers)
    yield loader_memory(machine, workers, batch_bytes)
    yield open_files(machine, workers)


def _mib(count: float) -> str:
    return f"{count / MIB:,.0f} MiB"
