"""What becomes of a job whose ranks have ended, and how that is read from the run folder."""

import json
import os
from pathlib import Path

import pytest

from ddp_ft.errors import UserError
from ddp_ft.slurm.job import first_host, free_port, read_mark, read_outcome, words_of_run
from ddp_ft.slurm.requeue import History, Outcome, decide

NEW = History()


@pytest.mark.parametrize(
    ("outcome", "requeue", "code"),
    [
        (Outcome(0, "done"), False, 0),
        (Outcome(1, "done"), False, 0),  # torchrun failed after the work was done
        (Outcome(0, ""), False, 0),  # --dry-run
        (Outcome(0, "stopped", ("job USR2",)), True, 75),
        (Outcome(1, "stopped", ("step SIGTERM",)), True, 75),  # preempted
        (Outcome(1, "", ("step SIGTERM", "crash")), True, 75),  # preempted, and too slow to save
        (Outcome(143, ""), True, 75),  # preempted while Python was being loaded
        (Outcome(143, "", made_step=True), True, 1),
        (Outcome(0, "stopped"), True, 75),  # by the ranks' own clock
        (Outcome(0, "stopped", ("job TERM", "step SIGTERM"), reason="None"), False, 75),
        (Outcome(0, "stopped", ("step SIGTERM", "job TERM"), reason="None"), False, 75),
        (Outcome(0, "stopped", ("job TERM",)), False, 75),  # nobody knows why
        (Outcome(0, "stopped", ("job TERM",), reason="TimeLimit"), True, 75),
        (Outcome(143, "", ("job TERM",), reason="None"), False, 1),
        (Outcome(1, "", ("crash", "step SIGTERM"), made_step=True), True, 1),  # srun's TERM to the other nodes
        (Outcome(1, ""), True, 1),
        (Outcome(0, "", ("job USR2",), made_step=True), True, 1),
        (Outcome(1, "", ("step SIGUSR1", "crash")), True, 1),  # a warning, and no preemption
    ],
)
def test_verdicts(outcome: Outcome, requeue: bool, code: int) -> None:
    verdict = decide(outcome, NEW, 0, 100)
    assert (verdict.requeue, verdict.code) == (requeue, code)


def starts(*outcomes: Outcome) -> list[bool]:
    """Whether each start of a job is followed by another."""
    history, found = NEW, []
    for number, outcome in enumerate(outcomes):
        verdict = decide(outcome, history, number, 100)
        history = verdict.history
        found.append(verdict.requeue)
    return found


CRASH = Outcome(1, "", ("crash",))
PROGRESS = Outcome(1, "", ("crash",), made_step=True, new_checkpoint=True)
NO_GROUND = Outcome(1, "", ("crash",), made_step=True)
PREEMPTED_EARLY = Outcome(1, "", ("step SIGTERM",))


def test_two_barren_crashes_in_a_row_are_the_end() -> None:
    assert starts(CRASH, CRASH) == [True, False]
    assert starts(CRASH, PROGRESS, CRASH, PROGRESS, CRASH) == [True] * 5


def test_a_preemption_during_the_start_is_neither_a_crash_nor_progress() -> None:
    assert starts(*[PREEMPTED_EARLY] * 9) == [True] * 9
    assert starts(CRASH, PREEMPTED_EARLY, CRASH) == [True, True, False]


def test_crashes_that_never_reach_a_checkpoint_are_the_end_too() -> None:
    assert starts(*[NO_GROUND] * 4) == [True, True, True, False]


def test_the_cap_on_requeues() -> None:
    stopped = Outcome(0, "stopped", ("job USR2",))
    assert decide(stopped, NEW, 4, 5).requeue
    verdict = decide(stopped, NEW, 5, 5)
    assert (verdict.requeue, verdict.code) == (False, 75) and "DDP_FT_MAX_REQUEUES=5" in verdict.message


def write(
    run: Path, status: str = "", step: int = 0, first_step: int = 0, newest: str = "", started: float = 1
) -> None:
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    if status:
        (run / "summary.json").write_text(json.dumps({"status": status}))
    (run / "lease.json").write_text(json.dumps({"started": started, "step": step, "first_step": first_step}))
    if newest:
        (run / "checkpoints/last").unlink(missing_ok=True)
        (run / "checkpoints/last").symlink_to(newest)


def test_only_what_this_start_wrote_counts(tmp_path: Path) -> None:
    write(tmp_path, "stopped", step=9, newest="step_9")
    os.utime(tmp_path / "summary.json", ns=(1, 1))
    before = read_mark(tmp_path, NEW)
    nothing = read_outcome(tmp_path, before, 1, tmp_path / "stop", "")
    assert (nothing.status, nothing.made_step, nothing.new_checkpoint) == ("", False, False)
    write(tmp_path, "stopped", step=12, first_step=9, newest="step_12", started=2)
    (tmp_path / "stop").write_text("step SIGTERM\njob TERM\n")
    found = read_outcome(tmp_path, before, 0, tmp_path / "stop", "")
    assert (found.status, found.made_step, found.new_checkpoint) == ("stopped", True, True)
    assert found.events == ("step SIGTERM", "job TERM")


def test_a_finished_run_that_is_started_again_is_done_and_one_that_crashes_is_not(tmp_path: Path) -> None:
    write(tmp_path, "done")
    before = read_mark(tmp_path, NEW)
    assert read_outcome(tmp_path, before, 0, tmp_path / "stop", "").status == "done"
    assert read_outcome(tmp_path, before, 1, tmp_path / "stop", "").status == ""


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("node1", "node1"),
        ("node[1-4]", "node1"),
        ("node[07,09-12],login", "node07"),
        ("a-b3,c[1-2]", "a-b3"),
        ("rack[2-3]n[007-009].site", "rack2n007.site"),
    ],
)
def test_first_host(nodelist: str, host: str) -> None:
    assert first_host(nodelist) == host


def test_no_hosts() -> None:
    with pytest.raises(UserError, match="SLURM_JOB_NODELIST"):
        first_host("")


def test_jobs_have_ports_of_their_own() -> None:
    import socket

    ports = [free_port(job) for job in range(500, 520)]
    assert len(set(ports)) == len(ports)
    with socket.socket() as taken:
        taken.bind(("", ports[0]))
        taken.listen()
        again = free_port(500)
    assert again != ports[0] and again not in ports[1:]


def test_a_line_of_a_file_of_runs(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.write_text("# all\n\n--lr 1\n  --run-dir 'ein Lauf ü' --set \"a=$HOME\"\n")
    assert words_of_run(runs, 2) == ["--run-dir", "ein Lauf ü", "--set", "a=$HOME"]
    for task, message in ((0, "runs 1 to 2"), (3, "runs 1 to 2")):
        with pytest.raises(UserError, match=message):
            words_of_run(runs, task)
    runs.write_text("--lr 'open\n")
    with pytest.raises(UserError, match="run 1: No closing quotation"):
        words_of_run(runs, 1)
    with pytest.raises(UserError, match="cannot be read"):
        words_of_run(tmp_path / "none", 1)
