"""The end of a job's time, and what fits in before it."""

import re
import time
from datetime import datetime
from pathlib import Path

import pytest

from ddp_ft.slurm.walltime import Pace, describe, earliest_stop, forecast, read_end_time, read_lead
from tests.support.runs import train_here

PACE = Pace(step=1.0, evaluation=8.0, save=2.0, steps_per_epoch=90)  # 100 s an epoch
END = "2026-11-21T10:00:00"


def command(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def test_the_end_that_slurm_puts_into_the_environment() -> None:
    assert read_end_time({"SLURM_JOB_END_TIME": "1800000000", "SLURM_JOB_ID": "7"}) == 1800000000
    assert read_end_time({}) is None


def test_the_end_that_scontrol_tells_or_else_squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = {"SLURM_JOB_ID": "7", "PATH": f"{tmp_path}"}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_end_time(env) is None  # neither command is there
    command(tmp_path, "squeue", f'[ "$*" = "-h -j 7 -o %e" ] && echo {END}')
    assert read_end_time(env) == datetime.fromisoformat(END).timestamp()
    command(tmp_path, "scontrol", "echo 'JobId=7 StartTime=x EndTime=2026-11-21T11:00:00 Deadline=N/A'")
    assert read_end_time(env) == datetime.fromisoformat(END).timestamp() + 3600
    command(tmp_path, "scontrol", "echo 'JobId=7 EndTime=Unknown'")
    assert read_end_time(env) is None
    command(tmp_path, "scontrol", "exit 1")
    command(tmp_path, "squeue", "exit 1")
    assert read_end_time(env) is None


def test_a_controller_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddp_ft.slurm.walltime.PATIENCE", 0.2)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("scontrol", "squeue"):
        command(tmp_path, name, "exec /bin/sleep 30")
    assert read_end_time({"SLURM_JOB_ID": "7", "PATH": str(tmp_path)}) is None


def test_the_lead() -> None:
    assert (read_lead({"DDP_FT_LEAD": "60"}), read_lead({}), read_lead({"DDP_FT_LEAD": "soon"})) == (60, 180, 180)


def test_a_run_that_fits_in() -> None:
    found = forecast(PACE, steps_left=180, now=1000, end=2000, lead=180)
    assert (found.epochs, found.requeues, found.last_checkpoint, found.is_done) == (2, 0, 1200, True)


def test_a_run_that_needs_more_jobs() -> None:
    # 820 s are usable: 8.2 of 30 epochs; the other 2180 s need three more jobs of 820 s.
    found = forecast(PACE, steps_left=2700, now=1000, end=2000, lead=180)
    assert (found.epochs, found.requeues, found.is_done) == (pytest.approx(8.2), 3, False)
    assert found.last_checkpoint == 2000 - 180 + 2


def test_exactly_full_jobs() -> None:
    assert forecast(PACE, 900, 0, 1180, 180).requeues == 0
    assert forecast(PACE, 901, 0, 1180, 180).requeues == 1
    assert forecast(PACE, 1800, 0, 1180, 180).requeues == 1


def test_jobs_shorter_than_the_lead_never_end() -> None:
    found = forecast(PACE, 900, now=0, end=100, lead=180)
    assert (found.epochs, found.requeues, found.last_checkpoint) == (0, None, 2)
    assert "no run can be done" in describe(found, 100, 180)


def test_a_lead_that_is_too_short_for_the_save() -> None:
    slow = Pace(step=1, evaluation=200, save=5, steps_per_epoch=90)
    assert forecast(slow, 900, 0, 90000, 180).lead_is_short and not forecast(PACE, 900, 0, 9000, 180).lead_is_short
    assert "--signal=B:USR2@" in describe(forecast(slow, 900, 0, 90000, 180), 90000, 180)


def test_what_the_log_says() -> None:
    end = datetime(2026, 11, 21, 10, 0).timestamp()
    text = describe(forecast(PACE, 2700, end - 1000, end, 180), end, 180)
    assert re.findall(r"[\d.:-]*\d", text) == ["2026-11-21", "10:00", "8.2", "2026-11-21", "09:57", "3"]
    done = describe(forecast(PACE, 90, end - 1000, end, 180), end, 180)
    assert re.findall(r"[\d.:-]*\d", done) == ["2026-11-21", "10:00", "2026-11-21", "09:45"]


def test_a_warning_that_comes_early_in_a_short_job_waits() -> None:
    assert earliest_stop(1000, 1060) == 1040
    assert earliest_stop(1000, None) == 0 and earliest_stop(1000, 900) == 0


def test_a_run_in_a_job_prints_once_how_far_it_will_come(shapes, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 36_000))
    train_here(shapes, tmp_path / "r", epochs=9)  # 36 steps
    assert capsys.readouterr().out.count("Job ends at") == 1


def test_the_forecast_is_of_the_steps_that_a_budget_of_time_leaves(shapes, tmp_path, monkeypatch, capsys) -> None:
    """Thousands of epochs take longer than an hour; what --max-minutes leaves of them does not."""
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 3600))
    train_here(shapes, tmp_path / "r", "--max-minutes", 1e-3, epochs=10**6)
    assert "the rest of the run fits in" in capsys.readouterr().out
