"""The batch scripts without Slurm: their form, and what they do with stand-ins for srun and scontrol."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ddp_ft.slurm.sbatch import KINDS, LAST_LINES

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "slurm").glob("*.sbatch"))
SHARED = ROOT / "ddp_ft" / "slurm" / "job.sh"
# Runs what stands behind srun's options, after it has noted them all.
SRUN = """#!/usr/bin/env bash
printf '%s\\n' "$@" >"$NOTES/srun"
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
if [[ $1 == show ]]; then echo "JobId=71 JobState=COMPLETING Reason=${REASON:-None} Restarts=0" && exit; fi
printf '%s\\n' "$*" >>"$NOTES/scontrol"
exit "${SCONTROL_CODE:-0}"
"""
# python as the scripts see it: ddp_ft.cli.node does what PLAY says, everything else is real. EARLY: the command during
# which the batch script is warned of the end of its time.
PYTHON = f"""#!/usr/bin/env bash
if [[ -n $EARLY && $* == *"$EARLY"* ]]; then kill -USR2 "$BATCH"; fi
if [[ $2 != ddp_ft.cli.node ]]; then exec "{sys.executable}" "$@"; fi
printf '%s\\0' "$@" >"$NOTES/node"
env >"$NOTES/environment"
run=$(dirname "$DDP_FT_STOP_FILE")
eval "$PLAY"
"""
SAVED = 'echo "{\\"status\\": \\"stopped\\"}" >"$run/summary.json"'


class Stage:
    """Runs a batch script with the stand-ins on its PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin, self.run_dir = folder, folder / "bin", folder / "a run"
        self.bin.mkdir()
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("python", PYTHON)):
            self.add(name, text)

    def add(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def __call__(self, script: str, *words: str, play: str = "true", **env: str) -> "subprocess.CompletedProcess[str]":
        words = words or ("--data", "x", "--model", "timm/y", "--run-dir", str(self.run_dir))
        job = {"SLURM_JOB_ID": "71", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_CPUS_PER_NODE": "8(x2),3"}
        environment = {
            "PATH": f"{self.bin}:/usr/bin:/bin", "PYTHONPATH": str(ROOT), "NOTES": str(self.folder), "PLAY": play,
            "LC_ALL": "C.UTF-8", **job, **env,
        }  # fmt: skip
        call = ["bash", "-c", 'export BATCH=$$; exec bash "$@"', "bash", ROOT / "slurm" / f"{script}.sbatch", *words]
        return subprocess.run(call, env=environment, cwd=self.folder, text=True, capture_output=True, timeout=60)

    def lines(self, name: str) -> list[str]:
        file = self.folder / name
        return file.read_text().splitlines() if file.exists() else []

    @property
    def train_words(self) -> list[str]:
        words = (self.folder / "node").read_text().split("\0")[:-1]
        return words[words.index("--") + 1 :]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


@pytest.mark.parametrize("script", [*SCRIPTS, SHARED], ids=lambda script: script.name)
def test_form(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)


def test_there_is_one_of_each_kind() -> None:
    assert {script.stem for script in SCRIPTS} == set(KINDS)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_the_user_s_options_decide_on_resources(script: Path) -> None:
    text = script.read_text()
    options = re.findall(r"^#SBATCH --([a-z-]+)", text, flags=re.MULTILINE)
    assert options and set(options) <= {"time", "signal", "requeue", "open-mode"}
    assert text.endswith(f'{LAST_LINES}ddp_ft_job {script.stem} "$@"\n')


def test_words_arrive_unharmed(stage: Stage) -> None:
    words = ["--data", "my pets", "--model", "a/b", "--run-dir", 'ü $ {HOME} "*" it\'s \\', "--set", "seed=3"]
    done = stage("multi_node", *words)
    assert done.returncode == 0, done.stderr
    assert stage.train_words == words


def test_srun_starts_one_task_a_node_with_its_cores(stage: Stage) -> None:
    stage("multi_node", SLURM_JOB_NUM_NODES="2", SLURM_JOB_NODELIST="n[07-08]", SLURM_NTASKS="16")
    notes = stage.lines("srun")
    assert {"--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=3", "--kill-on-bad-exit=1"} <= set(notes)
    meeting = notes[notes.index("--rendezvous") + 1]
    assert re.fullmatch(r"n07:\d+", meeting) and 20284 <= int(meeting.split(":")[1]) < 20288
    assert not [line for line in stage.lines("environment") if line.startswith("SLURM_NTASKS=")]


def test_without_srun_one_node_trains_all_the_same(stage: Stage) -> None:
    (stage.bin / "srun").unlink()
    if shutil.which("srun", path="/usr/bin:/bin"):
        # Only what the script needs, so that the machine's srun is out of sight.
        for name in ("bash", "env", "rm", "sed", "sort", "head", "tr", "mkdir", "dirname", "grep", "date", "sleep"):
            (stage.bin / name).symlink_to(shutil.which(name) or "")
    done = stage("single_node", PATH=str(stage.bin))
    assert done.returncode == 0 and stage.train_words, done.stderr


def test_a_mistake_is_told_before_anything_starts(stage: Stage) -> None:
    done = stage("multi_node", "--data", "x", "--modle", "y")
    assert done.returncode == 2 and "--modle" in done.stderr and stage.lines("srun") == []


@pytest.mark.parametrize(
    ("script", "env", "message"),
    [
        ("single_node", {"SLURM_JOB_NUM_NODES": "2"}, "use multi_node.sbatch"),
        ("array", {}, "sbatch --array=1-N"),
        ("array", {"SLURM_ARRAY_TASK_ID": "1"}, "file of runs must be the first"),
        ("multi_node", {"DDP_FT_REQUEUE": "perhaps"}, "DDP_FT_REQUEUE='perhaps'"),
        ("multi_node", {"DDP_FT_MAX_REQUEUES": "-1"}, "DDP_FT_MAX_REQUEUES='-1'"),
        ("multi_node", {"DDP_FT_PYTHON": "/no/python"}, "'/no/python' does not run ddp_ft"),
    ],
)
def test_bad_input(stage: Stage, script: str, env: dict[str, str], message: str) -> None:
    done = stage(script, **env)
    assert done.returncode == 2 and message in done.stderr, done.stderr


def test_help_is_train_s(stage: Stage) -> None:
    done = stage("single_node", "--help")
    assert done.returncode == 0 and "--batch-size" in done.stdout and stage.lines("srun") == []


def test_a_stopped_run_requeues_itself(stage: Stage) -> None:
    done = stage("multi_node", play=SAVED)
    assert done.returncode == 0 and stage.lines("scontrol") == ["requeue 71"], done.stderr
    assert [file.name for file in stage.run_dir.iterdir() if file.name.startswith(".stop")] == []


def test_an_array_requeues_its_task_and_not_the_array(stage: Stage) -> None:
    (stage.folder / "runs").write_text('--lr 1\n# no run\n--lr 2 --set "seed=4"\n')
    words = ["runs", "--data", "x", "--model", "y", "--run-dir", str(stage.run_dir)]
    stage("array", *words, play=SAVED, SLURM_ARRAY_TASK_ID="2", SLURM_ARRAY_JOB_ID="70")
    assert stage.lines("scontrol") == ["requeue 70_2"]
    assert stage.train_words == [*words[1:], "--lr", "2", "--set", "seed=4", "--run-dir", f"{stage.run_dir}-2"]


@pytest.mark.parametrize("env", [{"DDP_FT_REQUEUE": "exit"}, {"SCONTROL_CODE": "1"}, {"SLURM_RESTART_COUNT": "100"}])
def test_what_cannot_be_requeued_leaves_with_75(stage: Stage, env: dict[str, str]) -> None:
    assert stage("multi_node", play=SAVED, **env).returncode == 75


def test_the_second_crash_in_a_row_without_a_step_is_the_last(stage: Stage) -> None:
    assert [stage("multi_node", play="exit 9").returncode for _ in range(2)] == [0, 1]
    assert stage.lines("scontrol") == ["requeue 71"]


def test_a_signal_to_the_script_becomes_the_stop_file_and_is_not_requeued(stage: Stage) -> None:
    # $PPID of the step is the script; it waits until the stop file is there, as the ranks do.
    play = f"kill -TERM $PPID; until [[ -s $DDP_FT_STOP_FILE ]]; do sleep 0.05; done; {SAVED}"
    done = stage("preemptible", play=play, REASON="None")
    assert done.returncode == 75 and "ended by Slurm (None), saved" in done.stderr, done.stderr
    assert stage.lines("scontrol") == []
    # The warning came too late, or not at all: the time itself was over.
    assert stage("preemptible", play=play, REASON="TimeLimit").returncode == 0
    assert stage.lines("scontrol") == ["requeue 71"]
    assert stage.train_words[:2] == ["--set", "checkpoint.every_minutes=5"]


def test_the_warning_becomes_the_stop_file_and_a_requeue(stage: Stage) -> None:
    play = f"kill -USR1 $PPID; until [[ -s $DDP_FT_STOP_FILE ]]; do sleep 0.05; done; {SAVED}"
    done = stage("single_node", play=play)
    assert done.returncode == 0 and stage.lines("scontrol") == ["requeue 71"], done.stderr


@pytest.mark.parametrize("command", ["slurm_job script", "--print-run-dir", "slurm_job begin"])
def test_a_warning_before_anything_runs_is_heeded_and_kills_nothing(stage: Stage, command: str) -> None:
    play = f"until [[ -s $DDP_FT_STOP_FILE ]]; do sleep 0.05; done; {SAVED}"
    done = stage("single_node", play=play, EARLY=command)
    assert done.returncode == 0 and stage.lines("scontrol") == ["requeue 71"], done.stderr


def test_the_environment_reaches_the_nodes(stage: Stage) -> None:
    stage("multi_node", NPROC_PER_NODE="3", OMP_NUM_THREADS="2")
    notes = stage.lines("environment")
    assert {"NPROC_PER_NODE=3", "OMP_NUM_THREADS=2", "DDP_FT_LEAD=180"} <= set(notes)
    assert f"DDP_FT_STOP_FILE={stage.run_dir}/.stop-71" in notes
