"""The names of a run's folders, which are left out where a run was written right into the data's folder."""

from pathlib import Path

from ddp_ft.features import precompute
from ddp_ft.run_folder import bad_batches, evaluations
from ddp_ft.run_folder.folder import RunFolder
from ddp_ft.run_folder.recognise import OF_A_RUN
from ddp_ft.trackers import rank_log
from ddp_ft.training import profiler


def test_all_folders_of_a_run_are_known() -> None:
    folder = RunFolder(Path("x"))
    names = {folder.best.name, folder.checkpoints.name, precompute.FOLDER.parts[0]}
    names |= {module.FOLDER for module in (bad_batches, evaluations, rank_log, profiler)}
    assert names <= OF_A_RUN
