"""A real Slurm of a few nodes on this machine, for tests: munged, slurmctld, and a slurmd for each node.

A node is a slurmd in mount and UTS namespaces of its own: it has its own hostname (node1, node2, ...) and an
/etc/hosts that knows the others, at loopback addresses. Files, process ids and ports are the machine's.
"""

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

DAEMONS = {"munged": "munge", "slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client"}
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
# As most clusters do, a step's processes are found by their cgroup; where there is no freezer, by parentage.
FREEZER = Path("/sys/fs/cgroup/freezer")
CPUS = 2

CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until its old credentials are void.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/{tracking}
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
MinJobAge=3600
# Two clusters on one machine share its ports, which jobs choose by their number.
FirstJobId={first_job}
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
SlurmdTimeout=10
MessageTimeout=5
KillWait=10
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
"""
PARTITIONS = """
PartitionName=main Nodes=ALL Default=YES PriorityTier=10 PreemptMode=OFF
PartitionName=spare Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=15
"""
# Arguments: hostname, hosts file, cgroup or "", where to mount it, then the command.
IN_NAMESPACES = """
hostname "$1"
mount --bind "$2" /etc/hosts
if [[ -n $3 ]]; then mount -t cgroup -o freezer none "$4"; fi
exec "${@:5}"
"""


def why_not() -> str:
    """Why there can be no Slurm on this machine; empty if there can. Installs Debian's packages if they are missing."""
    if os.geteuid() != 0:
        return "a Slurm of several nodes needs root, for namespaces"
    missing = [package for daemon, package in DAEMONS.items() if not shutil.which(daemon, path=PATH)]
    if missing and not shutil.which("apt-get"):
        return f"{', '.join(missing)} not installed, and no apt-get"
    for words in (["install"], ["update"], ["install"]) if missing else ():
        packages = ["-y", "--no-install-recommends", *missing] if words == ["install"] else []
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(["apt-get", *words, *packages], env=environment, capture_output=True, timeout=150)
        if done.returncode == 0 and words == ["install"]:
            break
    still = [daemon for daemon in DAEMONS if not shutil.which(daemon, path=PATH)]
    if still:
        return f"{', '.join(still)} could not be installed"
    done = subprocess.run(["unshare", "--mount", "--uts", "mount", "--bind", "/etc", "/etc"], capture_output=True)
    return "" if done.returncode == 0 else "no mount namespaces here"


class Cluster:
    """The daemons, and what a test does with them. `stop` ends exactly what was started."""

    def __init__(self, nodes: int = 3) -> None:
        # Not under pytest's folders: munged wants each folder above its socket to be open to all.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self.folder.chmod(0o755)
        self.nodes = [f"node{number + 1}" for number in range(nodes)]
        self.tracking = "cgroup" if os.access(FREEZER / "cgroup.procs", os.W_OK) else "linuxproc"
        self.environment = {**os.environ, "PATH": PATH, "LC_ALL": "C.UTF-8", "SLURM_CONF": f"{self.folder}/slurm.conf"}

    def start(self) -> None:
        self._write_config()
        key, socket_ = self.folder / "munge.key", self.folder / "munge.socket"
        self._daemon(
            "munged", "--force", f"--socket={socket_}", f"--key-file={key}", f"--pid-file={self.folder}/munged.pid",
            f"--log-file={self.folder}/munged.log", f"--seed-file={self.folder}/munge.seed",
        )  # fmt: skip
        self._daemon("slurmctld", "-f", self.environment["SLURM_CONF"])
        self.until(lambda: "is UP" in self.run("scontrol", "ping", check=False), "slurmctld answers")
        for node in self.nodes:
            self._start_slurmd(node)
        self.until(lambda: all(map(self._is_up, self.nodes)), "all nodes are up")

    def _write_config(self) -> None:
        (self.folder / "munge.key").write_bytes(os.urandom(128))
        (self.folder / "munge.key").chmod(0o600)
        for name in ("state", "dev", "freezer"):
            (self.folder / name).mkdir()
        port = free_ports(len(self.nodes) + 1)
        values = {"port": port, "folder": self.folder, "tracking": self.tracking}
        host, first_job = socket.gethostname().split(".")[0], random.randrange(1, 60) * 1000
        text = CONFIG.format(**values, host=host, first_job=first_job)
        hosts = [f"127.0.0.1 localhost {socket.gethostname()}"]
        for number, node in enumerate(self.nodes):
            address = f"127.0.0.{11 + number}"
            hosts.append(f"{address} {node}")
            text += (
                f"NodeName={node} NodeAddr={address} Port={port + 1 + number} CPUs={CPUS} RealMemory=4000 Gres=gpu:2\n"
            )
        gpus = [self.folder / "dev" / f"gpu{number}" for number in range(2)]
        for gpu in gpus:
            os.mknod(gpu, 0o666 | stat.S_IFCHR, os.makedev(1, 3))  # Slurm takes devices alone; these are /dev/null
        (self.folder / "gres.conf").write_text("".join(f"Name=gpu File={gpu}\n" for gpu in gpus))
        (self.folder / "slurm.conf").write_text(text + PARTITIONS)
        (self.folder / "hosts").write_text("\n".join(hosts) + "\n")
        for node in self.nodes:  # a file each: by its name in mountinfo a node's processes are found
            shutil.copy(self.folder / "hosts", self.folder / f"hosts-{node}")
        if self.tracking == "cgroup":
            plugin = f"CgroupPlugin=cgroup/v1\nCgroupAutomount=no\nCgroupMountpoint={self.folder}\n"
            (self.folder / "cgroup.conf").write_text(plugin)

    def _daemon(self, *command: object, cgroup: Path | None = None) -> None:
        """Start something that puts itself into the background once it is ready."""
        log = (self.folder / "daemons.log").open("a")
        enter = (lambda: (cgroup / "cgroup.procs").write_text(str(os.getpid())) and None) if cgroup else None
        subprocess.run(
            list(map(str, command)), env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True,
            timeout=30, preexec_fn=enter,
        )  # fmt: skip
        log.close()

    def _start_slurmd(self, node: str) -> None:
        spaces, cgroup = ["--mount", "--uts", "--propagation", "slave"], None
        if self.tracking == "cgroup":
            cgroup = FREEZER / self.folder.name  # to the node it looks like the root
            cgroup.mkdir(exist_ok=True)
            spaces.append("--cgroup")
        inner = ["slurmd", "-N", node, "-f", self.environment["SLURM_CONF"]]
        words = [node, self.folder / f"hosts-{node}", "cgroup" if cgroup else "", self.folder / "freezer"]
        self._daemon("unshare", *spaces, "bash", "-ec", IN_NAMESPACES, "_", *words, *inner, cgroup=cgroup)

    def _is_up(self, node: str) -> bool:
        states = self.run("sinfo", "-h", "-N", "-n", node, "-o", "%T", check=False).split()
        return bool(states) and all(state in ("idle", "mixed", "allocated", "completing") for state in states)

    def run(
        self, *command: object, check: bool = True, cwd: Path | None = None, environment: dict[str, str] | None = None
    ) -> str:  # fmt: skip
        """What a command of Slurm prints."""
        done = subprocess.run(
            list(map(str, command)), env=environment or self.environment, cwd=cwd, capture_output=True, text=True,
            timeout=60,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` tells of it."""
        text = self.run("scontrol", "show", "job", "--oneliner", number)
        return dict(re.findall(r"(\S+?)=(\S*)", text))

    def kill_node(self, node: str) -> None:
        """Crash a node: all its processes end at once."""
        while pids := self._pids(node):
            for pid in pids:
                kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def start_node(self, node: str) -> None:
        """Boot a crashed node."""
        self._start_slurmd(node)
        self.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)
        self.until(lambda: self._is_up(node), f"{node} is up")

    def _pids(self, node: str) -> list[int]:
        found = []
        for file in Path("/proc").glob("[0-9]*/mountinfo"):
            try:
                if f"{self.folder.name}/hosts-{node} " in file.read_text():
                    found.append(int(file.parent.name))
            except OSError:
                continue  # ended meanwhile
        return found

    def stop(self) -> None:
        for name in ("slurmctld", "munged"):
            pid = self.folder / f"{name}.pid"
            if pid.exists():
                kill(int(pid.read_text()), signal.SIGKILL)
        for node in self.nodes:
            self.kill_node(node)
        if self.tracking == "cgroup" and (top := FREEZER / self.folder.name).exists():
            for folder in sorted((f for f in [top, *top.rglob("*")] if f.is_dir()), reverse=True):
                self.until(lambda folder=folder: remove(folder), f"{folder} is empty", 5)  # type: ignore[misc]
        shutil.rmtree(self.folder, ignore_errors=True)

    def until(self, condition: Callable[[], object], what: str, seconds: float = 30) -> None:
        """Wait for something; AssertionError if it does not come."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
            time.sleep(0.1)


def remove(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


def kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def free_ports(count: int) -> int:
    """The first of so many free ports in a row, below those that the kernel hands out."""
    while True:
        first = random.randrange(12000, 18000)
        sockets = [socket.socket() for _ in range(count)]
        try:
            for offset, probe in enumerate(sockets):
                probe.bind(("", first + offset))
            return first
        except OSError:
            continue
        finally:
            for probe in sockets:
                probe.close()
