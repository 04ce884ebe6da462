"""The batch scripts on a real Slurm of several nodes."""

import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from ddp_ft.cli.submit import submit
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import ROOT, Desk, Job
from tests.support.runs import read

pytestmark = pytest.mark.xdist_group("slurm")  # one cluster, and jobs that need its nodes


README_COMMAND = next(line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("sbatch "))


def test_two_nodes_train_as_one_by_the_readme_s_command(desk: Desk, tmp_path: Path) -> None:
    words = shlex.split(README_COMMAND.replace("--gpus-per-node=4", "--gpus-per-node=2"))
    script = words.index("slurm/multi_node.sbatch")
    run = tmp_path / "mein Lauf ü"
    job = desk.sbatch(Path(words[script]).name, words[1:script], desk.train(run), NPROC_PER_NODE="2")
    job.wait()
    summary = read(run, "summary.json")
    assert (summary["status"], summary["world_size"]) == ("done", 4), job.text()


# Tells what a node's task sees, instead of training.
TELLING_PYTHON = """#!/bin/bash
[[ $2 == ddp_ft.cli.node ]] || exec python "$@"
echo "$SLURMD_NODENAME gpus $CUDA_VISIBLE_DEVICES cores $SLURM_CPUS_PER_TASK tasks $SLURM_STEP_NUM_TASKS" >>"$NOTES"
"""


def test_a_node_s_task_has_all_that_the_job_has_there(desk: Desk, tmp_path: Path) -> None:
    """However the user counted the job's tasks."""
    python = tmp_path / "telling python"
    python.write_text(TELLING_PYTHON)
    python.chmod(0o755)
    options = ["--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1", "--gpus-per-task=1"]
    env = {"DDP_FT_PYTHON": str(python), "NOTES": str(tmp_path / "notes")}
    job = desk.sbatch("multi_node.sbatch", options, desk.train(tmp_path / "run"), **env)
    job.wait(seconds=30)
    lines = sorted((tmp_path / "notes").read_text().splitlines())
    assert lines == [f"{node} gpus 0,1 cores 2 tasks 2" for node in ("node1", "node2")], job.text()


def test_what_submit_writes_is_what_slurm_reads(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in desk.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    words = "--nodes 2 --gpus 2 --cpus 2 --time 1-2 --memory 1G --partition spare --lead 60 --sbatch=--hold --submit"
    options = [*words.split(), "--name", 'my "job" ü', "--output", f"{tmp_path}/log of %j"]
    outcome = CliRunner().invoke(submit, [*options, "--", *desk.train(tmp_path / "run")], standalone_mode=False)
    assert outcome.exception is None, outcome.exception
    number = outcome.stdout.split()[-1]
    text = desk.cluster.run("scontrol", "show", "job", number)
    desk.cluster.run("scancel", number)
    wanted = ('JobName=my "job" ü', "NumNodes=2", "TimeLimit=1-02:00:00", "Partition=spare", "Requeue=1", "gpu:2")
    assert [part for part in (*wanted, "CPUs/Task=2", f"StdOut={tmp_path}/log of {number}") if part not in text] == []


WEIGHTS = "best/model.safetensors"


@pytest.fixture(scope="session")
def unbroken(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, shapes: Path) -> bytes:
    """The weights of a run of two nodes that nothing interrupted."""
    folder = tmp_path_factory.mktemp("unbroken")
    return weights_of_an_unbroken_run(Desk(cluster, folder, shapes), folder / "run")


def weights_of_an_unbroken_run(desk: Desk, run: Path, **env: str) -> bytes:
    desk.sbatch("multi_node.sbatch", ["--nodes=2"], desk.train(run, epochs=EPOCHS), **env).wait()
    return (run / WEIGHTS).read_bytes()


EPOCHS = 10  # of 4 steps


@pytest.mark.slow
@pytest.mark.timeout(420)  # each start has a minute, of which a busy machine takes most to start
def test_the_end_of_the_time_saves_requeues_and_goes_on(desk: Desk, tmp_path: Path, unbroken: bytes) -> None:
    run = tmp_path / "run"
    job = desk.sbatch("multi_node.sbatch", ["--nodes=2", "--time=1"], desk.train(run, epochs=EPOCHS), sleep=1)
    facts = job.wait(seconds=350)
    assert int(facts["Restarts"]) >= 1, job.text()
    assert "stopped, saved" in job.text() and "start 0 of" in job.text() and "start 1 of" in job.text()
    assert read(run, "summary.json")["restarts"] == int(facts["Restarts"])
    assert (run / WEIGHTS).read_bytes() == unbroken


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_preemption_saves_requeues_and_goes_on(desk: Desk, tmp_path: Path) -> None:
    """With two processes on each node: also what more than two ranks sum up is summed in the same order."""
    run, four = tmp_path / "run", {"NPROC_PER_NODE": "2"}
    options = ["--nodes=2", "--partition=spare"]
    job = desk.sbatch("preemptible.sbatch", options, desk.train(run, epochs=EPOCHS), sleep=0.6, **four)
    job.wait_for(run / "checkpoints/step_00000005")
    desk.preempt()
    facts = job.wait(seconds=200)
    assert facts["Restarts"] == "1" and "interrupted by a signal to its tasks, saved" in job.text(), job.text()
    assert (run / WEIGHTS).read_bytes() == weights_of_an_unbroken_run(desk, tmp_path / "unbroken", **four)


@pytest.mark.slow
def test_preemption_during_the_start_is_no_crash(desk: Desk, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = desk.sbatch("preemptible.sbatch", ["--partition=spare"], desk.train(run, epochs=1), sleep=2)
    job.wait_for(run / f".slurm-{job.number}.json")
    desk.preempt()
    assert job.wait(seconds=150)["Restarts"] == "1"
    assert "crashed" not in job.text() and read(run, "summary.json")["status"] == "done", job.text()


@pytest.mark.slow
@pytest.mark.parametrize("node", [0, 1])
def test_a_node_that_dies(desk: Desk, tmp_path: Path, unbroken: bytes, node: int) -> None:
    run = tmp_path / "run"
    job = desk.sbatch("multi_node.sbatch", ["--nodes=2"], desk.train(run, epochs=EPOCHS), sleep=0.3)
    job.wait_for(run / "checkpoints/step_00000010")
    victim = desk.cluster.run("scontrol", "show", "hostnames", job.facts["NodeList"]).split()[node]
    desk.cluster.kill_node(victim)
    try:
        facts = job.wait(seconds=200)  # on the nodes that are left
    finally:
        desk.cluster.start_node(victim)
    assert int(facts["Restarts"]) >= 1, job.text()
    assert (run / WEIGHTS).read_bytes() == unbroken


@pytest.mark.slow
def test_scancel_saves_and_stays_cancelled(desk: Desk, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = desk.sbatch("multi_node.sbatch", ["--nodes=2"], desk.train(run, epochs=EPOCHS), sleep=0.3)
    job.wait_for(run / "checkpoints/step_00000010")
    desk.cluster.run("scancel", job.number)
    facts = job.wait("CANCELLED", 60)
    desk.cluster.until(lambda: (run / "summary.json").exists(), "saved")
    summary = read(run, "summary.json")
    assert summary["status"] == "stopped" and summary["step"] > 10, job.text()
    assert (run / f"checkpoints/step_{summary['step']:08d}").exists()
    desk.cluster.until(lambda: desk.cluster.run("squeue", "-h", "-j", job.number, check=False) == "", "gone")
    facts = job.facts
    assert (facts["JobState"], facts["Restarts"]) == ("CANCELLED", "0"), job.text()


@pytest.mark.slow
def test_an_array_of_three_runs(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "runs.txt").write_text('# rates\n--lr 0.01\n--lr 0.02 --run-dir "own folder"\n\n--lr 0.04\n')
    words = ["runs.txt", *desk.train(tmp_path / "all", epochs=1)]
    first = desk.sbatch("array.sbatch", ["--array=1-3", f"--output={tmp_path}/log-%A_%a.txt"], words)
    runs = [tmp_path / "all-1", tmp_path / "own folder", tmp_path / "all-3"]
    for number, run in enumerate(runs):
        Job(desk.cluster, f"{first.number}_{number + 1}", tmp_path / f"log-{first.number}_{number + 1}.txt").wait()
        assert read(run, "summary.json")["status"] == "done"
    configs = [(run / "config.yaml").read_text() for run in runs]
    assert all(f"\n  lr: {rate}\n" in text for rate, text in zip((0.01, 0.02, 0.04), configs, strict=True))
    assert not (tmp_path / "all").exists()
