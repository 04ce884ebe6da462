"""Checkpoints are complete or absent."""

import torch

from ddp_ft.checkpoint import Checkpoints, load_checkpoint, save_model_folder, save_weights, write_text

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3)}


def save(checkpoints, step, is_best=False):
    return checkpoints.save(step, WEIGHTS, {"step": step, "t": torch.ones(2)}, is_best)


def test_round_trip(tmp_path):
    weights, state = load_checkpoint(save(Checkpoints(tmp_path / "c", keep=2), 7))
    assert all(torch.equal(weights[name], WEIGHTS[name]) for name in WEIGHTS)
    assert state["step"] == 7
    assert torch.equal(state["t"], torch.ones(2))


def test_links_and_retention(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3, 4):
        save(checkpoints, step, is_best=step == 2)
    assert sorted(p.name for p in tmp_path.glob("step_*")) == ["step_00000002", "step_00000003", "step_00000004"]
    assert (tmp_path / "last").readlink().name == "step_00000004"
    assert (tmp_path / "best").readlink().name == "step_00000002"
    assert checkpoints.latest().name == "step_00000004"


def test_an_unfinished_write_is_no_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    (tmp_path / ".writing_step_00000009").mkdir()
    assert checkpoints.latest() is None
    save(checkpoints, 9)
    assert checkpoints.latest().name == "step_00000009"


def test_the_same_step_again_replaces_it(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    save(checkpoints, 3)
    save(checkpoints, 3)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["last", "step_00000003"]


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
