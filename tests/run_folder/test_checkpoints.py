"""Checkpoints are complete or absent."""

import math

import pytest
import torch

from ddp_ft.errors import UserError
from ddp_ft.files import write_text
from ddp_ft.run_folder.checkpoints import Checkpoints, Score, checkpoint_weights, load_checkpoint, load_ema, read_score
from ddp_ft.run_folder.model_folder import save_model_folder, save_weights

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3)}


def save(checkpoints, step, score=None, **options):
    given = Score(*score) if isinstance(score, tuple) else None if score is None else Score(score)
    return checkpoints.save(step, WEIGHTS, {"step": step, "t": torch.ones(2)}, given, **options)


def names(root):
    return sorted(path.name for path in root.iterdir() if not path.is_symlink())


def steps(root):
    return [int(name.removeprefix("step_")) for name in names(root)]


def target(link):
    return link.readlink().name


def test_round_trip(tmp_path):
    folder = save(Checkpoints(tmp_path / "c", keep=2), 7)
    weights, state = load_checkpoint(folder)
    assert all(torch.equal(weights[name], WEIGHTS[name]) for name in WEIGHTS)
    assert checkpoint_weights(folder).keys() == WEIGHTS.keys()
    assert state["step"] == 7
    assert torch.equal(state["t"], torch.ones(2))
    assert load_ema(folder) is None and read_score(folder) is None


def test_averages_stand_beside_the_weights(tmp_path):
    folder = save(Checkpoints(tmp_path, keep=2), 7, ema={"a": torch.tensor([2.5])})
    assert torch.equal(load_ema(folder)["a"], torch.tensor([2.5]))
    assert torch.equal(load_checkpoint(folder)[0]["a"], WEIGHTS["a"])


def test_links_and_retention(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3, 4):
        save(checkpoints, step, score=0.9 if step == 2 else 0.5)
    assert steps(tmp_path) == [2, 3, 4]
    assert target(tmp_path / "last") == "step_00000004"
    assert target(tmp_path / "best") == "step_00000002"
    assert checkpoints.newest_sound()[0].name == "step_00000004"


@pytest.mark.parametrize(("keep", "keep_best", "kept"), [(1, 1, [2, 6]), (1, 3, [2, 3, 5, 6]), (2, 2, [2, 5, 6])])
def test_as_many_of_the_newest_and_of_the_best_as_asked(tmp_path, keep, keep_best, kept):
    scores = {1: 0.1, 2: 0.9, 3: 0.5, 4: math.nan, 5: 0.7, 6: None}
    for step, score in scores.items():
        save(Checkpoints(tmp_path, keep, keep_best), step, score)  # made anew each time: scores survive restarts
    assert steps(tmp_path) == kept
    assert target(tmp_path / "best") == "step_00000002"


def test_the_ranking_of_equals_and_of_nan(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=99)
    for step, score in {1: math.nan, 2: 0.5, 3: 0.5, 4: -math.inf, 5: None, 6: -3.0}.items():
        save(checkpoints, step, score)
    assert [int(folder.name[-1]) for folder in checkpoints.ranking()] == [2, 3, 6, 1, 4]
    assert target(tmp_path / "best") == "step_00000002"


def test_of_equals_the_smaller_loss_is_better(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, keep_best=2)
    for step, score in {1: (0.5, -0.9), 2: (0.5, -0.2), 3: (0.5, -0.2), 4: (0.5,), 5: (0.4, -0.1)}.items():
        save(checkpoints, step, score)
    assert [int(folder.name[-1]) for folder in checkpoints.ranking()] == [2, 3, 5]
    assert target(tmp_path / "best") == "step_00000002" and read_score(tmp_path / "best") == Score(0.5, -0.2)
    (tmp_path / "best" / "score.json").write_text('{"score": 0.5}')  # as earlier versions wrote it
    assert read_score(tmp_path / "best") == Score(0.5)


def test_a_later_choice_ranks_before_a_better_one(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step, score in ((1, Score(0.8, chosen=1)), (2, Score(0.79, chosen=2)), (3, Score(0.5)), (4, Score(0.7))):
        checkpoints.save(step, {"w": torch.zeros(1)}, {}, score)
    assert target(tmp_path / "best") == "step_00000002" and names(tmp_path) == ["step_00000002", "step_00000004"]
    assert read_score(tmp_path / "best").chosen == 2


def test_a_first_score_of_nan_is_the_best_there_is(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    save(checkpoints, 1, math.nan)
    save(checkpoints, 2)
    assert steps(tmp_path) == [1, 2] and target(tmp_path / "best") == "step_00000001"
    save(checkpoints, 3, -9.0)
    assert steps(tmp_path) == [3] and target(tmp_path / "best") == "step_00000003"


def test_the_probe_is_older_than_all_steps_and_goes_when_they_come(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (10, 40, 99):
        save(checkpoints, step, score=1.0 / step, phase="probe")
    assert names(tmp_path) == ["probe_00000010", "probe_00000040", "probe_00000099"]
    assert checkpoints.newest_sound()[0].name == "probe_00000099" and target(tmp_path / "best") == "probe_00000010"
    save(checkpoints, 1)
    assert names(tmp_path) == ["step_00000001"]
    assert checkpoints.newest_sound()[0].name == target(tmp_path / "last") == "step_00000001"
    assert not (tmp_path / "best").is_symlink()  # and does not point at what is gone


def test_a_probe_killed_before_its_pruning_is_still_older(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    save(checkpoints, 5)
    (tmp_path / "probe_00000099").mkdir()
    (tmp_path / "step_notes").mkdir()
    assert checkpoints.newest_sound()[0].name == "step_00000005"


def test_a_damaged_checkpoint_is_named(tmp_path):
    folder = save(Checkpoints(tmp_path, keep=2), 3)
    (folder / "model.safetensors").write_bytes(b"short")
    for read in (load_checkpoint, checkpoint_weights):
        with pytest.raises(UserError, match="step_00000003 cannot be read"):
            read(folder)
    (folder / "state.pt").unlink()
    with pytest.raises(UserError, match="step_00000003 cannot be read"):
        load_checkpoint(folder)


def test_an_unfinished_write_is_no_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    (tmp_path / ".writing_step_00000009").mkdir()
    assert checkpoints.newest_sound() == (None, [])
    save(checkpoints, 9)
    assert checkpoints.newest_sound()[0].name == "step_00000009"


def test_leftovers_of_killed_processes_are_swept(tmp_path):
    for name in (".writing_step_00000002", ".removing_step_00000001"):
        (tmp_path / name).mkdir()
    save(Checkpoints(tmp_path, keep=2), 3)
    assert names(tmp_path) == ["step_00000003"]


def test_the_same_step_again_replaces_it_and_keeps_its_score(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    save(checkpoints, 3, score=0.25)
    folder = save(checkpoints, 3)
    assert names(tmp_path) == ["step_00000003"] and read_score(folder) == Score(0.25)
    assert target(tmp_path / "best") == "step_00000003"


def test_same_weights_same_bytes_in_any_memory_format(tmp_path):
    image = torch.randn(2, 3, 4, 4)
    save_weights(tmp_path / "1", {"w": image})
    save_weights(tmp_path / "2", {"w": image.to(memory_format=torch.channels_last)})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_model_folder_is_replaced_as_a_whole(tmp_path):
    for value in (1.0, 2.0):
        save_model_folder(tmp_path / "best", {"w": torch.tensor(value)}, {"value": value})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best"]
    assert sorted(p.name for p in (tmp_path / "best").iterdir()) == ["model.json", "model.safetensors"]


def test_write_text_leaves_no_trace(tmp_path):
    write_text(tmp_path / "f", "old")
    write_text(tmp_path / "f", "new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("f", "new")]
