"""Each of doctor's checks finds its trouble, and nothing where there is none."""

import errno
import fcntl
import json
import socket
import sys
from pathlib import Path

import pytest

from ddp_ft.config.loading import make_config
from ddp_ft.diagnostics import disk, launcher, machine, versions
from ddp_ft.diagnostics.examination import Asked, Examination
from ddp_ft.diagnostics.finding import NOTE, OK, PROBLEM, WARNING, Finding
from ddp_ft.diagnostics.machine import MIB, Machine
from ddp_ft.diagnostics.rendering import as_json, as_text, has_problem
from ddp_ft.diagnostics.versions import LEAST, Gpus, driver_version
from ddp_ft.distributed.environment import Launch

SOUND = Machine(
    cores=8, all_cores=8, quota=None, open_files=4096, shared_bytes=8192 * MIB, memory_bytes=2**34,
    processes=2, threads=4,
)  # fmt: skip
TORCHRUN = Launch(0, 4, 0, 2, distributed=True)


def changed(**values):
    return Machine(**{**SOUND.__dict__, **values})


def verdicts(found):
    return {finding.name: finding.verdict for finding in found}


def test_a_sound_machine_is_found_to_be_so():
    found = list(machine.all_of(SOUND, {"OMP_NUM_THREADS": "4"}, workers=1, batch_bytes=MIB, is_cpu=True))
    assert verdicts(found) == dict.fromkeys(("cores", "threads", "shared memory", "loader memory", "open files"), OK)
    assert not any(finding.remedy for finding in found)


@pytest.mark.parametrize(
    "name, verdict, values, workers",
    [
        ("cores", WARNING, {"cores": 2}, 8),
        ("cpu quota", WARNING, {"quota": 1.5}, 1),
        ("threads", WARNING, {"threads": 8}, 0),
        ("threads", WARNING, {"threads": 1}, 0),
        ("shared memory", OK, {"shared_bytes": MIB}, 4),  # batches are not in there
        ("shared memory", WARNING, {"shared_bytes": 0}, 1),
        ("shared memory", WARNING, {"shared_bytes": None}, 1),
        ("loader memory", PROBLEM, {"memory_bytes": 64 * MIB}, 4),
        ("open files", OK, {"open_files": 200}, 1),
        ("open files", WARNING, {"open_files": 200}, 8),
    ],
)
def test_each_trouble_of_the_machine(name, verdict, values, workers):
    found = list(machine.all_of(changed(**values), {}, workers, 3 * MIB, is_cpu=True))
    assert verdicts(found)[name] == verdict
    assert all(finding.remedy for finding in found if finding.verdict != OK)


def test_idle_cores_are_none_where_a_gpu_computes():
    assert machine.threads(changed(threads=1), {}, is_cpu=False).verdict == OK


def test_the_quota_of_either_version_of_cgroups(tmp_path):
    assert machine.cpu_quota(tmp_path) is None
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("150000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert machine.cpu_quota(tmp_path) == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine.cpu_quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert machine.cpu_quota(tmp_path) == 0.5


def test_the_memory_that_a_cgroup_leaves(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable:   80 kB\n")
    assert machine.usable_memory(tmp_path, tmp_path / "meminfo") == 80 * 1024
    for name, text in (("max", "max"), ("current", "30000"), ("stat", "anon 20000\ninactive_file 5000")):
        (tmp_path / f"memory.{name}").write_text(f"{text}\n")
    assert machine.usable_memory(tmp_path, tmp_path / "meminfo") == 80 * 1024
    (tmp_path / "memory.max").write_text("50000\n")
    assert machine.usable_memory(tmp_path, tmp_path / "meminfo") == 25_000


def test_a_port_that_is_taken():
    with socket.create_server(("", 0)) as taken:
        number = taken.getsockname()[1]
        assert machine.port(number, is_ours=False).verdict == WARNING
        assert machine.port(number, is_ours=True).verdict == OK
    assert machine.port(number, is_ours=False).verdict == OK


def test_a_host_without_an_address():
    assert machine.hostname("localhost", has_peers=False).verdict == OK
    assert machine.hostname("localhost", has_peers=True).verdict == WARNING  # nobody else finds it
    assert machine.hostname("no such host", has_peers=True).verdict == PROBLEM
    assert machine.hostname("no such host", has_peers=False).verdict == NOTE


def test_locks_are_tried_by_a_second_process(tmp_path):
    assert machine.locks(tmp_path).verdict == OK
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    assert "No locks available" in machine.locks(tmp_path).text
    monkeypatch.setattr(fcntl, "lockf", lambda *arguments: None)  # says yes and does nothing, as nfs with nolock
    assert machine.locks(tmp_path).verdict == WARNING


def test_packages():
    def load(name):
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return sys

    there = {**LEAST, "timm": "0.9.12", "torch": "2.15.0+cpu"}
    del there["simplejpeg"], there["tensorboard"]
    found = {finding.name: finding for finding in versions.packages(load, there)}
    assert {name: finding.verdict for name, finding in found.items() if finding.verdict != OK} == {
        "torchvision": PROBLEM, "timm": WARNING, "tensorboard": PROBLEM, "simplejpeg": NOTE,
    }  # fmt: skip
    assert "torch torchvision" in found["torchvision"].remedy


def test_the_least_versions_are_those_of_the_package():
    lines = (Path(__file__).parents[2] / "setup.cfg").read_text().splitlines()
    needed = dict(line.strip().split(">=") for line in lines if ">=" in line and not line.startswith("python"))
    assert {name: needed[name] for name in LEAST} == LEAST


H200 = "GPU 0: NVIDIA H200"


@pytest.mark.parametrize(
    "gpus, visible, verdict",
    [
        (Gpus(()), None, OK),
        (Gpus((H200,), None), None, PROBLEM),  # a build of torch for CPUs
        (Gpus((H200,), (13, 2), (12, 8)), None, PROBLEM),  # too new for the driver
        (Gpus((H200,), (12, 8), (13, 0)), None, PROBLEM),  # a container without them
        (Gpus((H200,), (12, 8), (13, 0)), "", NOTE),
        (Gpus((H200,), (12, 8), (13, 0), 1, "2.27.3", "91002"), None, OK),
    ],
)
def test_cuda(gpus, visible, verdict):
    [found] = versions.cuda(gpus, visible)
    assert found.verdict == verdict
    assert bool(found.remedy) == (verdict != OK)


class Driver:
    """What ctypes makes of the driver's library."""

    def __init__(self, name):
        assert name == "libcuda.so.1"

    def cuDriverGetVersion(self, number):
        number._obj.value = 12080


def test_the_driver_knows_which_cuda_it_supports():
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    assert driver_version(Driver) == (12, 8) and driver_version(missing) is None


def test_a_gpu_that_is_not_visible_is_noted():
    found = list(versions.cuda(Gpus((H200, H200), (12, 8), (13, 0), 1), "0"))
    assert [finding.verdict for finding in found] == [OK, NOTE]


SLURM = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_ON_NODE": "16"}


def test_a_sound_job():
    found = list(launcher.all_of({**SLURM, "SLURM_CPUS_PER_TASK": "16"}, TORCHRUN, cores=16, gpus=2))
    assert verdicts(found) == dict.fromkeys(("start", "cores of task", "nodes", "gpus of node"), OK)


@pytest.mark.parametrize(
    "name, verdict, environ, launch, cores, gpus",
    [
        ("start", PROBLEM, {**SLURM, "SLURM_STEP_NUM_TASKS": "4"}, Launch(), 16, 0),
        ("cores of task", WARNING, SLURM, TORCHRUN, 1, 0),  # srun without --cpus-per-task
        ("cores of task", WARNING, {**SLURM, "SLURM_CPUS_PER_TASK": "8"}, TORCHRUN, 1, 0),
        ("nodes", WARNING, SLURM, Launch(0, 2, 0, 2, True), 16, 0),
        ("nodes", WARNING, {**SLURM, "SLURM_JOB_NUM_NODES": "1"}, TORCHRUN, 16, 0),
        ("gpus of node", WARNING, {}, TORCHRUN, 16, 4),
        ("gpus of node", PROBLEM, {}, TORCHRUN, 16, 1),
        ("GLOO_SOCKET_IFNAME", PROBLEM, {"GLOO_SOCKET_IFNAME": "ib77"}, TORCHRUN, 16, 0),
    ],
)
def test_each_trouble_of_the_job(name, verdict, environ, launch, cores, gpus):
    found = {finding.name: finding for finding in launcher.all_of(environ, launch, cores, gpus)}
    assert (found[name].verdict, bool(found[name].remedy)) == (verdict, True)


def test_interfaces_that_are_there_or_excluded():
    environ = {"GLOO_SOCKET_IFNAME": "eth", "NCCL_SOCKET_IFNAME": "^docker0"}
    assert verdicts(launcher.interfaces(environ, ["lo", "eth0"])) == {"GLOO_SOCKET_IFNAME": OK}


def test_a_run_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    assert disk.writable(tmp_path / "new" / "run").verdict == OK
    assert disk.writable(tmp_path / "file").verdict == PROBLEM
    assert disk.writable(tmp_path / "file" / "run").verdict == PROBLEM
    assert disk.writable(Path("/proc/run")).verdict == PROBLEM  # also for root
    known = Examination(Asked((), tmp_path / "file" / "run", quick=False), make_config(), Launch(), None)
    [alone] = disk.examine_disk(known, None)
    assert alone.verdict == PROBLEM
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_a_run_writes():
    need = disk.need_of(100, "adamw", has_average=True, kept=3, features=7)
    assert (need.checkpoint, need.checkpoints, need.total) == (400, 4, 4 * 400 + 100 + 7)
    assert disk.need_of(100, "lookahead_sgd", False, 2, 0).checkpoint == 200
    assert disk.space(2 * need.total, need).verdict == OK
    assert disk.space(need.total, need).verdict == WARNING
    assert disk.space(need.total - 1, need).verdict == PROBLEM
    assert disk.space(1, None).verdict == OK


def test_a_checkpoint_that_takes_longer_than_the_grace(tmp_path):
    need = disk.need_of(100 * MIB, "adamw", False, 3, 0)  # 300 MiB
    assert disk.saving(100 * MIB, need, 30, "torchrun").verdict == OK
    assert disk.saving(20 * MIB, need, 30, "torchrun").verdict == WARNING
    assert disk.saving(9 * MIB, need, 30, "torchrun").verdict == PROBLEM
    assert disk.measure_writing(tmp_path, size=4 * MIB) > 0
    assert list(tmp_path.iterdir()) == []


def test_the_grace_is_slurms_where_it_tells():
    shown = {"config": "KillWait                = 10 sec\n", "partition": "PartitionName=spare GraceTime=15 Hidden=NO"}

    def show(what):
        return shown[what[0]]

    assert disk.grace_of({}, show) == (30, "torchrun")
    assert disk.grace_of({"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "120"}, show) == (120, "torchrun")
    assert disk.grace_of({"SLURM_JOB_ID": "1"}, show) == (10, "Slurm (KillWait)")
    spare = {"SLURM_JOB_ID": "1", "SLURM_JOB_PARTITION": "spare"}
    assert disk.grace_of(spare, show) == (25, "Slurm (KillWait and GraceTime)")
    assert disk.grace_of(spare, lambda what: "") == (30, "torchrun")


REPORT = """\
data
  ok       splits    30 train
  problem  readable  2 of 30
                     Mend them.
                     - a
                     - b
                     - c
                     - d
                     - e
                     - and 1 more; --json has all
disk
  note     speed     slow
                     so it is
1 problem, 0 warnings, 1 note, 1 ok"""


def test_a_group_of_thousands_is_cut_in_the_text_alone():
    families = {"data": [Finding("duplicates", NOTE, "1 group", "Harmless.", 1.0, "groups", ("image = " * 1000,))]}
    assert max(map(len, as_text(families).splitlines())) < 400
    assert len(json.loads(as_json(families))["findings"][0]["paths"][0]) == 8_000


def test_the_report():
    families = {
        "data": [Finding("splits", OK, "30 train", "unused"), Finding("readable", PROBLEM, "2 of 30", "Mend them.", 2.0,
                 "images", tuple("abcdef"))],
        "disk": [Finding("speed", NOTE, "slow\nso it is")],
    }  # fmt: skip
    assert as_text(families) == REPORT
    long = as_text({"run": [Finding("steps", NOTE, "few", "word " * 30)]}, columns=60).splitlines()
    assert max(map(len, long)) <= 60 and long[3].startswith(" " * 18 + "word") and len(long) == 7
    assert has_problem(families) and not has_problem({"disk": families["disk"]})
    told = json.loads(as_json(families))
    assert (told["schema"], told["verdict"]) == (1, PROBLEM)
    assert told["findings"][1] == {
        "family": "data", "name": "readable", "verdict": "problem", "text": "2 of 30", "remedy": "Mend them.",
        "value": 2.0, "unit": "images", "paths": list("abcdef"),
    }  # fmt: skip
