"""Ranks from the launcher's variables."""

import pytest

from ddp_ft.distributed.environment import Launch, ReportedByAnother, read_launch
from ddp_ft.errors import UserError

TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1",
}  # fmt: skip


def test_torchrun():
    assert read_launch(TORCHRUN) == Launch(3, 4, 1, 2, distributed=True)


def test_alone():
    assert read_launch({"MASTER_ADDR": "h"}) == Launch()


def test_torchrun_outranks_slurm():
    slurm = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}
    assert read_launch({**slurm, **TORCHRUN}).rank == 3
    assert read_launch(slurm) == Launch()


@pytest.mark.parametrize(
    ("starter", "several"),
    [
        ("srun", {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "{}", "SLURM_LOCALID": "{}"}),
        ("flux run", {"FLUX_JOB_SIZE": "2", "FLUX_TASK_RANK": "{}"}),
        ("mpirun", {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "{}"}),
    ],
)
def test_several_processes_without_torchrun_are_refused_by_the_first(starter, several):
    first, second = ({name: value.format(place) for name, value in several.items()} for place in range(2))
    with pytest.raises(UserError, match=f"{starter} started 2 processes without torchrun") as caught:
        read_launch(first)
    assert not isinstance(caught.value, ReportedByAnother)
    with pytest.raises(ReportedByAnother):
        read_launch(second)
    assert read_launch(second | TORCHRUN).rank == 3
    assert read_launch(first | {"SLURM_PTY_PORT": "1"}) == Launch()  # a shell
    assert read_launch(dict.fromkeys(several, "1")) == Launch()


@pytest.mark.parametrize("missing", sorted(TORCHRUN))
def test_half_set_names_what_is_missing(missing):
    partial = {name: value for name, value in TORCHRUN.items() if name != missing}
    with pytest.raises(UserError, match=f"without {missing}"):
        read_launch(partial)


@pytest.mark.parametrize(
    "bad",
    [
        {"RANK": "x"},
        {"RANK": "4"},
        {"LOCAL_RANK": "-1"},
        {"LOCAL_WORLD_SIZE": "9"},
        {"MASTER_PORT": "a"},
        {"MASTER_PORT": "65536"},
    ],
)
def test_nonsense_is_refused(bad):
    with pytest.raises(UserError):
        read_launch({**TORCHRUN, **bad})
