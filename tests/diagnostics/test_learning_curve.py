"""Whether more images would help, by heads on frozen features."""

import pytest
import torch

from ddp_ft.cli.report import report
from ddp_ft.diagnostics.learning_curve import nested_order
from ddp_ft.diagnostics.stored_run import compose_stored, one_process
from ddp_ft.distributed.environment import Launch
from ddp_ft.errors import UserError
from ddp_ft.reporting.curve import verdict
from ddp_ft.run_folder.folder import RunFolder
from ddp_ft.training.plan import read_plan
from tests.support.runs import read, rows, train_here

pytestmark = pytest.mark.xdist_group("learning curve")


def call(*words) -> None:
    report.main([str(word) for word in words], standalone_mode=False)


@pytest.fixture(scope="module")
def run(shapes, start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("curve") / "run"
    train_here(shapes, folder, "--weights", start, "--recipe", "lp_ft", epochs=1)
    return folder


def test_the_curve(run, capsys):
    call(run, "--learning-curve", "--device", "cpu")
    said, content = capsys.readouterr().out, read(run, "learning_curve.json")
    assert [point["images"] for point in content["points"]] == [6, 8, 15, 30]
    assert all(0 <= point["mean"] <= 1 for point in content["points"])
    assert content["points"][-1]["deviation"] is None
    assert content["trained"] == read(run, "summary.json")["val"]["accuracy"]
    assert "12 images" not in said and "accuracy on the validation set" in said and verdict(content) in said
    assert "Learning curve" in (run / "report.html").read_text()


def test_all_images_give_what_the_probe_reached(run):
    """With the same steps on the same features, in another order."""
    probed = rows(run, "val", "probe")
    content = read(run, "learning_curve.json")
    assert content["points"][-1]["mean"] == pytest.approx(probed[-1]["accuracy"], abs=1.5 / 12)


def test_it_repeats(run):
    before = (run / "learning_curve.json").read_bytes()
    call(run, "--learning-curve", "--device", "cpu")
    assert (run / "learning_curve.json").read_bytes() == before


def test_every_beginning_has_the_classes_in_their_proportions(run):
    folder = RunFolder(run)
    with one_process("cpu", Launch()) as here:
        composed, _ = compose_stored(folder, read_plan(folder), None, here, print)
        orders = [nested_order(composed, draw) for draw in range(2)]
        targets = torch.from_numpy(composed.splits.train.targets)
    assert not torch.equal(*orders)
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(30))
        for images in (3, 6, 15):
            assert torch.bincount(targets[order[:images]]).tolist() == [images // 3] * 3


def test_the_verdict():
    points = [{"images": images, "mean": mean} for images, mean in ((50, 0.6), (100, 0.7), (200, 0.78), (400, 0.82))]
    curve = {"metric": "accuracy", "higher_is_better": True, "error": 0.02, "points": points, "trained": 0.9}
    assert verdict(curve) == (
        "More images would help: twice as many have just added 0.0400 (the error of measuring it: 0.0200). "
        "Training as this run did adds 0.0800 to the head alone."
    )
    assert verdict({**curve, "error": 0.05}).startswith("Whether more images would help cannot be told")
    falling = [{"images": images, "mean": mean} for images, mean in ((50, 9.0), (100, 8.0), (200, 5.0), (400, 3.0))]
    assert "added 2.0000 (the error" in verdict(
        {**curve, "higher_is_better": False, "points": falling, "trained": None}
    )


def test_a_set_without_smaller_parts_has_no_verdict(shapes, start, tmp_path, capsys):
    for part in ("train", "val"):
        for folder in (shapes / part).iterdir():
            (tmp_path / "few" / part / folder.name).mkdir(parents=True)
            for file in sorted(folder.iterdir())[:2]:
                (tmp_path / "few" / part / folder.name / file.name).symlink_to(file)
    train_here(tmp_path / "few", tmp_path / "r", "--weights", start, epochs=1)
    call(tmp_path / "r", "--learning-curve", "--device", "cpu")
    assert "too few images to draw smaller parts" in capsys.readouterr().out
    assert len(read(tmp_path / "r", "learning_curve.json")["points"]) == 1


def test_what_is_refused(run, shapes, tmp_path):
    with pytest.raises(UserError, match="of one run"):
        call(run, run, "--learning-curve")
    with pytest.raises(UserError, match="no run that has begun"):
        call(tmp_path, "--learning-curve")
    train_here(shapes, tmp_path / "new")
    with pytest.raises(UserError, match="random weights"):
        call(tmp_path / "new", "--learning-curve")
