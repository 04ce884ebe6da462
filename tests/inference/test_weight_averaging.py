"""Averages of a run's checkpoints: their numbers, batch norm's statistics, and what is refused."""

import json
import re

import click
import pytest
import torch
from safetensors.torch import load_file

from ddp_ft.cli.average import average
from ddp_ft.data.image.transforms import eval_transform
from ddp_ft.data.splits.open import open_splits
from ddp_ft.errors import UserError
from ddp_ft.inference.trained_model import load_trained
from ddp_ft.run_folder.checkpoints import Checkpoints, Score, checkpoint_weights
from ddp_ft.run_folder.folder import RunFolder
from tests.support.loading import eval_loader
from tests.support.trained import draw_weights, write_run

SCORES = {1: 0.4, 2: 0.9, 3: None, 4: 0.7, 5: 0.2}


@pytest.fixture(scope="module")
def plain_run(shapes, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("plain") / "run", shapes, SCORES)


@pytest.fixture(scope="module")
def norm_run(shapes, tmp_path_factory):
    """With batch norm; each checkpoint has other running statistics, and counts of batches."""
    run = write_run(tmp_path_factory.mktemp("norm") / "run", shapes, {}, net="with_batch_norm")
    for step in (1, 2, 3):
        weights = draw_weights("with_batch_norm", 3, step)
        for name, tensor in weights.items():
            if "running" in name:
                tensor += torch.rand_like(tensor)
            elif "num_batches" in name:
                tensor += 10 * step
        Checkpoints(run / "checkpoints", keep=9).save(step, weights, {}, score=Score(step / 10))
    return run


def call(run, output, *more):
    arguments = [run, "--output", output, "--device", "cpu", *more]
    average.main([str(argument) for argument in arguments], standalone_mode=False)
    return load_file(output / "model.safetensors")


def stored(run, *steps):
    return [checkpoint_weights(run / f"checkpoints/step_{step:08d}") for step in steps]


def assert_mean(found, parts, names=None):
    assert found.keys() == parts[0].keys()
    for name in names or found:
        expected = torch.stack([part[name].double() for part in parts]).mean(0)
        assert torch.equal(found[name], expected.to(found[name].dtype)), name


@pytest.mark.parametrize(
    ("options", "steps"),
    [(["--last", 3], [3, 4, 5]), (["--best", 2], [2, 4]), (["--best", 3], [1, 2, 4]), (["--last", 1], [5])],
)
def test_the_mean_of_the_chosen_checkpoints(plain_run, tmp_path, capsys, options, steps):
    found = call(plain_run, tmp_path / "out", *options)
    assert_mean(found, stored(plain_run, *steps))
    names = ", ".join(f"step_{step:08d}" for step in steps)
    assert f"is the average of {names}." in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.safetensors", "model.json"}
    assert (tmp_path / "out/model.json").read_bytes() == (plain_run / "best/model.json").read_bytes()


def test_evaluate_and_predict_take_it(plain_run, shapes, tmp_path, capsys):
    """And evaluate gives the metrics that were printed."""
    from ddp_ft.evaluate import evaluate
    from ddp_ft.predict import predict

    call(plain_run, tmp_path / "out", "--last", 2)
    lines = capsys.readouterr().out.splitlines()
    evaluate.main([str(tmp_path / "out"), "--data", str(shapes)], standalone_mode=False)
    after = json.loads(capsys.readouterr().out)
    evaluate.main([str(plain_run), "--data", str(shapes)], standalone_mode=False)
    before = json.loads(capsys.readouterr().out)
    for line, metrics in zip(lines, (before, after), strict=False):
        printed = {name: float(value) for name, value in re.findall(r"(\w+) (-?[\d.]+)(?:,|$)", line)}
        assert {"loss", "accuracy"} <= printed.keys()
        assert printed == pytest.approx({name: metrics[name] for name in printed}, abs=1e-4)
    predict.main([str(tmp_path / "out"), str(shapes), "--output", str(tmp_path / "p.csv")], standalone_mode=False)
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 43


def first_layer_outputs(run, output):
    """What the averaged model's first layer gives for each training image, in their order."""
    trained = load_trained(output, torch.device("cpu"))
    splits = open_splits(RunFolder(run).stored_config().data, 0)
    [batch] = list(eval_loader(splits.train, eval_transform(trained.processor.preprocess), 64))
    mean, std = (
        torch.tensor(value)[:, None, None]
        for value in (trained.processor.preprocess.mean, trained.processor.preprocess.std)
    )
    return trained.module[0]((batch["image"].float() / 255 - mean) / std).detach()


def assert_statistics(found, mean, variance):
    torch.testing.assert_close(found["1.running_mean"], mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["1.running_var"], variance, rtol=1e-4, atol=1e-5)


def test_statistics_are_those_of_the_training_set(norm_run, tmp_path, capsys):
    found = call(norm_run, tmp_path / "out", "--last", 3)
    assert "Warning" not in capsys.readouterr().out
    parts = stored(norm_run, 1, 2, 3)
    assert_mean(found, parts, [name for name in found if "running" not in name and "num_batches" not in name])
    assert int(found["1.num_batches_tracked"]) == 30  # the newest's
    seen = first_layer_outputs(norm_run, tmp_path / "out")
    assert_statistics(found, seen.mean((0, 2, 3)), seen.var((0, 2, 3)))
    assert all(torch.equal(tensor, found[name]) for name, tensor in call(norm_run, tmp_path / "2", "--last", 3).items())


def test_statistics_over_several_chunks_count_images_alike(norm_run, tmp_path, monkeypatch):
    """30 images as 20 and 10; and as 29 and 1, which has no variance worth counting."""
    for chunk, parts in ((20, (20, 10)), (29, (29,))):
        monkeypatch.setattr("ddp_ft.inference.scoring.EVAL_CHUNK", chunk)
        output = tmp_path / str(chunk)
        found = call(norm_run, output, "--last", 3)
        seen = first_layer_outputs(norm_run, output)[: sum(parts)]
        variance = sum(len(part) * part.var((0, 2, 3)) for part in seen.split(parts)) / sum(parts)
        assert_statistics(found, seen.mean((0, 2, 3)), variance)


def test_statistics_that_never_changed_stay(shapes, tmp_path):
    """As frozen batch norm's."""
    run = write_run(tmp_path / "run", shapes, {1: 0.1, 2: 0.2}, net="with_batch_norm")
    found = call(run, tmp_path / "out", "--last", 2)
    assert torch.equal(found["1.running_mean"], torch.zeros(8)) and torch.equal(found["4.running_var"], torch.ones(16))


def test_a_single_checkpoint_is_left_as_it_is(norm_run, tmp_path):
    found = call(norm_run, tmp_path / "out", "--best", 1)
    assert_mean(found, stored(norm_run, 3))


def test_without_the_data_statistics_are_averaged_with_a_warning(shapes, tmp_path, capsys):
    data = tmp_path / "data"
    data.symlink_to(shapes)
    run = write_run(tmp_path / "run", data, {}, net="with_batch_norm")
    for step in (1, 2):
        weights = draw_weights("with_batch_norm", 3, step)
        weights["1.running_mean"] += step
        Checkpoints(run / "checkpoints", keep=9).save(step, weights, {})
    data.unlink()
    found = call(run, tmp_path / "out", "--last", 2)
    assert torch.equal(found["1.running_mean"], torch.full((8,), 1.5))
    out = capsys.readouterr().out
    assert "Note: the run's data is not used." in out and "Warning: batch norm's statistics are averaged" in out
    with pytest.raises(UserError, match="--greedy needs the validation set"):
        call(run, tmp_path / "greedy", "--greedy")
    assert not (tmp_path / "greedy").exists()
    call(run, tmp_path / "again", "--last", 2, "--data", shapes)  # the same data, moved
    assert "Warning" not in capsys.readouterr().out


@pytest.fixture
def soup_run(shapes, tmp_path):
    """Checkpoint 2 is good; 4 is near it; the others are noise that spoils it."""
    run = write_run(tmp_path / "soup", shapes, {}, settings={"eval.metric": "loss"})
    good = draw_weights("plain", 3, 0)
    last = "6.weight"
    good[last] = good[last] / 20
    for step, noise in {1: 30.0, 2: 0.0, 3: 50.0, 4: 0.001}.items():
        torch.manual_seed(step)
        weights = {name: tensor + noise * torch.randn_like(tensor) for name, tensor in good.items()}
        Checkpoints(run / "checkpoints", keep=9).save(step, weights, {})
    return run


def test_a_greedy_soup_takes_what_does_not_hurt(soup_run, tmp_path, capsys):
    """The metric is the run's: a loss, of which less is better."""
    found = call(soup_run, tmp_path / "out", "--greedy")
    out = capsys.readouterr().out
    verdicts = dict(re.findall(r"with step_0000000(\d): loss [\d.]+, (added|left out)", out))
    losses = {step: float(loss) for step, loss in re.findall(r"step_0000000(\d): loss ([\d.]+)", out)}
    first = min(losses, key=losses.get)
    assert first in "24" and verdicts.keys() == set("1234") - {first}
    taken = [int(step) for step in "1234" if step == first or verdicts[step] == "added"]
    assert verdicts["1"] == verdicts["3"] == "left out"
    assert_mean(found, stored(soup_run, *taken))
    before, after = (float(re.search(rf"{word}, .*loss ([\d.]+)", out)[1]) for word in ("before", "after"))
    assert after <= before == losses[first]


def test_a_checkpoint_of_the_same_weights_is_added(shapes, tmp_path, capsys):
    """It does not lower the metric."""
    run = write_run(tmp_path / "run", shapes, {})
    for step in (1, 2):
        Checkpoints(run / "checkpoints", keep=9).save(step, draw_weights("plain", 3, 7), {})
    call(run, tmp_path / "out", "--greedy")
    assert "is the average of step_00000001, step_00000002." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "None of --last, --best and --greedy"),
        (["--last", 2, "--best", 2], "2 of --last, --best and --greedy"),
        (["--last", 6], r"6 checkpoints .* has 5"),
        (["--best", 5], r"5 checkpoints with a validation .* has 4"),
        (["--last", 2, "--data", "/nowhere"], "/nowhere does not exist"),
    ],
)
def test_what_cannot_be_averaged(plain_run, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        call(plain_run, tmp_path / "out", *options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [["--last", 0], ["--best", -1]])
def test_less_than_one_checkpoint(plain_run, tmp_path, options):
    with pytest.raises(click.BadParameter, match="range"):
        call(plain_run, tmp_path / "out", *options)


def test_places_that_do_not_fit(plain_run, shapes, tmp_path):
    with pytest.raises(UserError, match="nowhere is not there"):
        call(tmp_path / "nowhere", tmp_path / "out", "--last", 1)
    for folder in (shapes, plain_run / "best"):
        with pytest.raises(UserError, match="is no run folder"):
            call(folder, tmp_path / "out", "--last", 1)
    with pytest.raises(UserError, match="exists already"):
        call(plain_run, tmp_path, "--last", 1)


def test_data_of_another_run_is_refused(plain_run, tmp_path):
    from tests.support.images import write_shapes

    other = write_shapes(tmp_path / "other", train=3, val=2)
    with pytest.raises(UserError, match="other data"):
        call(plain_run, tmp_path / "out", "--last", 2, "--data", other)


def test_a_damaged_checkpoint_leaves_nothing(shapes, tmp_path):
    run = write_run(tmp_path / "run", shapes, {1: 0.1, 2: 0.2})
    (run / "checkpoints/step_00000001/model.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="step_00000001 cannot be read"):
        call(run, tmp_path / "out", "--last", 2)
    assert not (tmp_path / "out").exists()


def test_several_processes_are_refused(plain_run, tmp_path, monkeypatch):
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="one process, not as 2"):
        call(plain_run, tmp_path / "out", "--last", 1)
