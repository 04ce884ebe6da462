"""Runs with an adapter: the same on any number of processes, through kills, and in all that is made of them."""

import json
import re
import shutil
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

from ddp_ft.errors import UserError
from ddp_ft.inference.adapted_model import checkpoint_reader
from ddp_ft.inference.trained_model import load_trained
from ddp_ft.run_folder.checkpoints import load_checkpoint, load_ema
from tests.support import nets
from tests.support.runs import arguments, call_on, column, read, train_here, train_on
from tests.support.texts import write_encoder, write_lines
from tests.system.docs.test_readme import ROOT, commands_of, run
from tests.system.faults.comparing import assert_same_result
from tests.system.faults.forks import train_killed

MORE = ("--ema", 0.5, "--set", "freeze.schedule={0: 'regex:^0[.]', 1: none}", "--set", "checkpoint.every_steps=3")
ADAPTER = ("--adapter", "lora", "--set", "adapter.rank=2")


def options(data, run, start, *more):
    return [data, run, "--weights", start, *ADAPTER, "--lr", 0.02, *more]


@pytest.fixture(scope="module")
def alone(shapes, start, tmp_path_factory):
    """A run of one process, with a moving average and a stage of unfreezing."""
    run = tmp_path_factory.mktemp("adapters") / "alone"
    train_on(1, *options(shapes, run, start, *MORE), epochs=3)
    return run


def files_of(folder):
    found = {str(each.relative_to(folder)): each.read_bytes() for each in folder.rglob("*") if each.is_file()}
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors", "model.safetensors"} < found.keys()
    return found


def test_it_learns(alone):
    losses = column(alone, "loss")
    assert sum(losses[-4:]) < sum(losses[:4])


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_same_curve_on_any_number_of_processes(alone, shapes, start, tmp_path, world_size):
    train_on(world_size, *options(shapes, tmp_path / "run", start, *MORE), epochs=3)
    assert column(tmp_path / "run", "loss") == pytest.approx(column(alone, "loss"), abs=2e-5)
    assert column(tmp_path / "run", "accuracy", "val") == column(alone, "accuracy", "val")


def test_a_killed_run_ends_with_the_same_bytes(alone, shapes, start, tmp_path):
    again = arguments(*options(shapes, tmp_path / "run", start, *MORE, "--workers", 0), epochs=3)
    train_killed(again, tmp_path)
    train_on(1, *options(shapes, tmp_path / "run", start, *MORE), epochs=3)
    assert read(tmp_path / "run", "summary.json")["restarts"] == 1
    assert_same_result(tmp_path / "run", alone)
    assert files_of(tmp_path / "run/best") == files_of(alone / "best")


def test_a_checkpoint_holds_what_learns(alone, start):
    folder = alone / "checkpoints" / "last"
    weights, rest = load_checkpoint(folder)
    learning = {f"{layer}.lora_{part}.weight" for layer in (0, 2) for part in "AB"} | {"6.weight", "6.bias"}
    assert set(weights) == set(load_ema(folder)) == learning
    assert rest["base"] == read(alone, "plan.json")["base"] == read(alone, "best/model.json")["adapter"]["base"]
    assert len(rest["base"]) == 64
    assert not any(b"weights.pth" in content for content in files_of(alone / "best").values())
    best, before = load_file(alone / "best/model.safetensors"), torch.load(start, weights_only=True)
    assert best.keys() == before.keys()
    assert torch.equal(best["0.bias"], before["0.bias"]) and not torch.equal(best["0.weight"], before["0.weight"])


def test_another_base_is_refused(shapes, start, tmp_path):
    file = tmp_path / "weights.pth"
    shutil.copy(start, file)
    train_here(*options(shapes, tmp_path / "run", file, "--recipe", "full"))
    weights = torch.load(file, weights_only=True)
    torch.save({**weights, "0.bias": weights["0.bias"] + 1}, file)
    with pytest.raises(UserError, match="other weights than when the run began, and the run's adapter") as error:
        train_here(*options(shapes, tmp_path / "run", file, "--recipe", "full", "--extend"), epochs=2)
    assert "Bring back the file" in error.value.hint
    (tmp_path / "run/plan.json").unlink()
    with pytest.raises(UserError, match="The checkpoint's adapter is on other weights"):
        train_here(*options(shapes, tmp_path / "run", file, "--recipe", "full", "--extend"), epochs=2)


def test_a_damaged_best_model_comes_back(alone, shapes, start, tmp_path):
    shutil.copytree(alone, tmp_path / "run", symlinks=True)
    for name in ("best", "summary.json"):
        path = tmp_path / "run" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    said = train_on(1, *options(shapes, tmp_path / "run", start, *MORE), epochs=3)
    assert "is brought back from" in said
    assert files_of(tmp_path / "run/best") == files_of(alone / "best")


def test_the_best_model_is_used_without_its_base(alone, shapes, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(alone / "best", tmp_path / "elsewhere/best")
    call_on(1, "ddp_ft.evaluate", tmp_path / "elsewhere", "--data", shapes, "--output", tmp_path / "m.json")
    found = json.loads((tmp_path / "m.json").read_text())
    assert found["loss"] == pytest.approx(read(alone, "summary.json")["val"]["loss"], abs=1e-5)


@pytest.mark.parametrize(
    ("net", "more"),
    [
        ("with_blocks", ["--layer-decay", 0.5]),
        ("with_blocks", ["--set", "compute.recompute=true", "--set", "adapter.dropout=0.3"]),
        ("with_blocks", ["--recipe", "lp_ft", "--set", "adapter.dora=true"]),
        ("with_batch_norm", ["--set", "ema.decay=0.9", "--set", "optim.relative=true", "--set", "adapter.rslora=true"]),
    ],
)  # fmt: skip
def test_what_it_goes_together_with(shapes, tmp_path, net, more):
    torch.manual_seed(1)
    file = tmp_path / "start.pth"
    torch.save(getattr(nets, net)().state_dict(), file)
    said = train_on(1, *options(shapes, tmp_path / "run", file, *more), net=net, epochs=2)
    assert "lora" in said
    best, before = load_file(tmp_path / "run/best/model.safetensors"), torch.load(file, weights_only=True)
    changed = {name for name in before if not torch.equal(best[name], before[name])}
    head = {name for name in changed if name.startswith(("4.", "9."))}
    kept = {name for name in before if "norm" in name or name.endswith("bias")} - head
    statistics = {name for name in before if "running" in name or "num_batches" in name}
    assert head and changed - head and not (kept - statistics) & changed


def test_blocks_that_are_computed_again_have_the_same_bits(shapes, tmp_path):
    """The inputs of the first block need no gradient here, but its adapter does."""
    torch.save(timm.create_model("test_vit", num_classes=3, img_size=32).state_dict(), tmp_path / "start.pth")
    words = ["--model", "timm/test_vit", "--weights", tmp_path / "start.pth", "--recipe", "lora"]
    train_on(1, shapes, tmp_path / "kept", *words)
    train_on(1, shapes, tmp_path / "again", *words, "--set", "compute.recompute=true")
    assert column(tmp_path / "kept", "loss") == column(tmp_path / "again", "loss")
    assert files_of(tmp_path / "kept/best") == files_of(tmp_path / "again/best")


def test_a_small_encoder(tmp_path):
    encoder, data = write_encoder(tmp_path / "bert"), write_lines(tmp_path / "lines.jsonl")
    words = ["--model", f"transformers/{encoder}", "--weights", "pretrained", "--recipe", "lora", "--epochs", 3]
    said = train_on(1, data, tmp_path / "run", *words, "--set", "model.image_size=auto")
    assert "lora of rank 8 on 13 layers" in said
    from transformers import AutoModelForSequenceClassification

    module = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run/best")
    ours = load_trained(tmp_path / "run", torch.device("cpu")).module
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in module.state_dict().items())


def test_what_is_refused(shapes, start, tmp_path):
    with pytest.raises(UserError, match="--freeze backbone leaves nothing of the adapter"):
        train_here(*options(shapes, tmp_path / "run", start, "--freeze", "backbone"))
    with pytest.raises(UserError, match="= nowhere means no layer"):
        train_here(*options(shapes, tmp_path / "run", start, "--set", "adapter.targets=nowhere"))
    with pytest.raises(UserError, match="--adapter lora learns beside pretrained weights, and --weights is none"):
        train_here(shapes, tmp_path / "run", *ADAPTER)


def export(*args):
    from ddp_ft.export import export as command

    return command.main([*map(str, args)], standalone_mode=False)


def test_merging_anew_is_compared_with_both_apart(shapes, tmp_path, capsys):
    torch.manual_seed(2)
    file, run = tmp_path / "start.pth", tmp_path / "run"
    torch.save(timm.create_model("test_vit", num_classes=3, img_size=32).state_dict(), file)
    train_here(shapes, run, "--model", "timm/test_vit", "--weights", file, "--recipe", "lora", "--lr", 0.01)
    assert export(run, "--format", "safetensors", "--output", tmp_path / "plain", "--merge") == 0
    said = capsys.readouterr().out
    assert "12 of 12 the same" in said and "Wrote" in said
    merged, best = (load_file(folder / "model.safetensors") for folder in (tmp_path / "plain", run / "best"))
    assert all(torch.equal(merged[name], tensor) for name, tensor in best.items())
    assert timm.create_model(f"local-dir:{tmp_path / 'plain'}", pretrained=True).num_classes == 3
    assert "adapter" not in json.loads((tmp_path / "plain/model.json").read_text())
    torch.save({name: tensor + 1 for name, tensor in torch.load(file, weights_only=True).items()}, file)
    with pytest.raises(UserError, match="is on other weights than") as error:
        export(run, "--format", "safetensors", "--output", tmp_path / "third", "--merge")
    assert "The merged weights are in" in error.value.hint and not (tmp_path / "third").exists()
    shutil.move(run / "best", tmp_path / "alone")
    with pytest.raises(UserError, match="not in its run folder"):
        export(tmp_path / "alone", "--format", "safetensors", "--output", tmp_path / "third", "--merge")
    assert export(tmp_path / "alone", "--format", "safetensors", "--output", tmp_path / "third") == 0


def test_merging_what_has_no_adapter(shapes, start, tmp_path):
    train_here(shapes, tmp_path / "run", "--weights", start)
    with pytest.raises(UserError, match="was trained without an adapter"):
        export(tmp_path / "run", "--format", "safetensors", "--output", tmp_path / "plain", "--merge")


def test_an_average_of_checkpoints(alone, tmp_path, shapes):
    from ddp_ft.cli.average import average

    words = [alone, "--output", tmp_path / "mean", "--device", "cpu", "--last", 2, "--data", shapes]
    average.main([str(word) for word in words], standalone_mode=False)
    mean, read_one = load_file(tmp_path / "mean/model.safetensors"), checkpoint_reader(alone)
    parts = [read_one(folder) for folder in sorted((alone / "checkpoints").glob("step_*"))[-2:]]
    assert not torch.equal(parts[0]["0.weight"], parts[1]["0.weight"])
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, (parts[0][name] + parts[1][name]) / 2)
    assert "adapter" not in read(tmp_path / "mean", "model.json") and not (tmp_path / "mean/adapter").exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_commands_and_the_program_of_the_guide_run(shapes, tmp_path, monkeypatch):
    page, name = (ROOT / "docs/adapters.md").read_text(encoding="utf-8"), "vit_small_patch16_224.augreg_in21k_ft_in1k"
    (tmp_path / "pets").symlink_to(shapes)
    (tmp_path / "photos").symlink_to(shapes / "val")
    torch.save(timm.create_model("test_vit", num_classes=3).state_dict(), tmp_path / "start.pth")
    tiny = "--model timm/test_vit --weights start.pth --epochs 1 --batch-size 8"
    for command in commands_of(page):
        done = run(command.replace("~/pets", "pets").replace(f"--model timm/{name}", tiny), tmp_path)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    assert (tmp_path / "plain/model.safetensors").is_file()
    pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    [program] = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    program = program.replace(f'"{name}", pretrained=True', '"test_vit", checkpoint_path="start.pth"')
    done: dict[str, Any] = {}
    exec(program, done)
    plain = load_trained(tmp_path / "runs/lora", torch.device("cpu")).module
    images = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(done["model"](images), plain(images), atol=1e-5, rtol=1e-5)
