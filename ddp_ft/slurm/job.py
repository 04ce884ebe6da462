"""What a batch script asks: where nodes meet, which run an array's task is, how far a start got."""

import re
import shlex
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from ddp_ft.errors import UserError
from ddp_ft.files import read_sound_json
from ddp_ft.run_folder.lease import read_lease
from ddp_ft.run_folder.pointers import target_of
from ddp_ft.slurm.requeue import History, Outcome

FIRST_PORT, PORTS_OF_A_JOB, PORT_BLOCKS = 20000, 4, 3000


def first_host(nodelist: str) -> str:
    """The first name of Slurm's list of hosts: "rack[2-3]n[07,09],login" -> "rack2n07"."""
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])+", nodelist)
    if first is None:
        raise UserError(f"SLURM_JOB_NODELIST={nodelist!r} is not a list of hosts.")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first.group())


def free_port(job: int) -> int:
    """A free TCP port of this host, among those of the job: two jobs that start at once do not take the same."""
    first = FIRST_PORT + job % PORT_BLOCKS * PORTS_OF_A_JOB
    for port in range(first, first + PORTS_OF_A_JOB):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise UserError(
        f"Ports {first} to {first + PORTS_OF_A_JOB - 1} of {socket.gethostname()}, those of job {job}, are all taken."
    )


def read_runs(file: Path) -> list[str]:
    """The lines of a file of runs, without empty ones and those that begin with #."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The file of runs {file} cannot be read: {error}.") from None
    return [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]


def words_of_run(file: Path, task: int) -> list[str]:
    """The words of the run with that number, counted from 1; quoted as in a shell, but not expanded."""
    lines = read_runs(file)
    if not 1 <= task <= len(lines):
        raise UserError(
            f"Array task {task}: {file} has runs 1 to {len(lines)}.", f"Submit it with sbatch --array=1-{len(lines)}."
        )
    try:
        return shlex.split(lines[task - 1])
    except ValueError as error:
        raise UserError(f"{file}, run {task}: {error}: {lines[task - 1]}") from None


@dataclass(frozen=True)
class Mark:
    """What the run folder held when this start began, by which its progress is seen; and the crashes before."""

    summary: int = 0  # time of change of summary.json, in nanoseconds; 0 if there is none
    lease: float | None = None  # when the newest start took the lease
    newest: str = ""  # the newest checkpoint
    barren: int = 0
    crashes: int = 0


def read_mark(run_dir: Path, history: History) -> Mark:
    """The mark of the run folder as it is."""
    summary, last, holder = run_dir / "summary.json", run_dir / "checkpoints" / "last", read_lease(run_dir)
    return Mark(
        summary.stat().st_mtime_ns if summary.exists() else 0,
        None if holder is None else holder.started,
        target_of(last),
        **asdict(history),
    )


def read_outcome(run_dir: Path, before: Mark, code: int, stop_file: Path, reason: str) -> Outcome:
    """How the start that began with that mark ended, from its run folder."""
    after, holder = read_mark(run_dir, History()), read_lease(run_dir)
    status = read_sound_json(run_dir / "summary.json", dict).get("status", "")
    if after.summary == before.summary and not (status == "done" and code == 0):
        status = ""  # an earlier start's; a finished run that is started again leaves it as it is
    events = stop_file.read_text(encoding="utf-8").splitlines() if stop_file.exists() else []
    return Outcome(
        code, status, tuple(events),
        made_step=after.lease != before.lease and holder is not None and holder.step > holder.first_step,
        new_checkpoint=after.newest != before.newest,
        reason=reason,
    )  # fmt: skip
