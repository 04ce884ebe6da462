"""What a run began with holds for its later starts, whatever has changed around it since."""

import json
import shutil

import pytest
import torch

from ddp_ft.errors import EXIT_USER_ERROR
from ddp_ft.reporting.facts import read_run
from tests.support import nets
from tests.support.runs import arguments, column, read, train_here
from tests.system.faults.fault import Fault
from tests.system.faults.forks import run_forked

RELATIVE = ("--set", "optim.relative=true")


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(5)
    return write_weights(tmp_path / "weights.pt", {})


def write_weights(file, scales):
    """A net's weights, some of them multiplied."""
    state = nets.plain(3).state_dict()
    torch.manual_seed(5)
    state = {name: torch.randn_like(tensor) * 0.1 * scales.get(name, 1.0) for name, tensor in state.items()}
    torch.save(state, file)
    return file


def begin(shapes, run, *more):
    """A start that is killed while its second checkpoint comes into being; the first is that of step 3."""
    fault = Fault(str(run.with_name(f"{run.name}-fault")), "kill", r"checkpoints/step_\d{8}", 2)
    codes, said = run_forked(1, options(shapes, run, *more), more=fault.environment())
    assert codes == [-9] and (run / "checkpoints/step_00000003").is_dir(), said


def options(shapes, run, *more):
    often = ["--set", "checkpoint.every_steps=3", "--workers", "0", "--recipe", "full"]
    return arguments(shapes, run, *often, *more, epochs=2)


def go_on(shapes, run, *more):
    return run_forked(1, options(shapes, run, *more))


@pytest.mark.parametrize("scales", [{"0.weight": 8.0}, {"0.weight": 4.0, "2.weight": 0.25}])
def test_rates_are_those_of_the_weights_then(shapes, tmp_path, weights, scales):
    """`--weights` names another run, say, whose best model has changed: other sizes would be other rates."""
    more = (*RELATIVE, "--weights", weights)
    train_here(shapes, tmp_path / "whole", "--recipe", "full", *more, epochs=2)
    begin(shapes, tmp_path / "cut", *more)
    assert set(read(tmp_path / "cut", "plan.json")["rate_factors"].values()) == {1.0}
    write_weights(weights, scales)
    codes, said = go_on(shapes, tmp_path / "cut", *more)
    assert codes == [0], said
    parts = [tmp_path / name / "best/model.safetensors" for name in ("cut", "whole")]
    assert parts[0].read_bytes() == parts[1].read_bytes()


def test_weights_that_a_penalty_pulls_to_must_be_the_same(shapes, tmp_path, weights):
    more = ("--set", "optim.l2_sp=0.1", "--weights", weights)
    begin(shapes, tmp_path / "r", *more)
    write_weights(weights, {"0.weight": 1.001})
    codes, said = go_on(shapes, tmp_path / "r", *more)
    assert codes == [EXIT_USER_ERROR] and "other weights than when the run began" in said and "Traceback" not in said
    write_weights(weights, {})
    assert go_on(shapes, tmp_path / "r", *more)[0] == [0]


def test_the_rate_that_auto_was_then(shapes, tmp_path):
    """An earlier version may have found another one for such a model."""
    begin(shapes, tmp_path / "r")
    plan = read(tmp_path / "r", "plan.json")
    (tmp_path / "r/plan.json").write_text(json.dumps({**plan, "lr": plan["lr"] / 8}))
    codes, said = go_on(shapes, tmp_path / "r")
    assert codes == [0], said
    rates = column(tmp_path / "r", "lr/head")
    assert rates[-1] < 0.01 * rates[1]  # it would have fallen to a twentieth


def test_a_recipe_that_is_gone(shapes, tmp_path):
    """A run that began with it is read and gone on with; a new one is refused, with the recipe's settings."""
    begin(shapes, tmp_path / "r", "--set", "augment.preset=heavy", "--ema", 0.999)
    file = tmp_path / "r/config.yaml"
    file.write_text(file.read_text().replace("recipe: full", "recipe: heavy"))
    plan = read(tmp_path / "r", "plan.json")
    (tmp_path / "r/plan.json").write_text(json.dumps({**plan, "recipe": "heavy"}))
    shutil.copytree(tmp_path / "r", tmp_path / "other", symlinks=True)
    codes, said = go_on(shapes, tmp_path / "r", "--recipe", "heavy", "--set", "augment.preset=heavy")
    assert codes == [0] and read(tmp_path / "r", "summary.json")["status"] == "done", said
    assert read_run(tmp_path / "r").plan.recipe == "heavy"
    codes, said = go_on(shapes, tmp_path / "new", "--recipe", "heavy")
    assert codes == [EXIT_USER_ERROR] and "--augment heavy --ema 0.999" in said
    assert not (tmp_path / "new").exists()
    codes, said = go_on(shapes, tmp_path / "other", "--recipe", "gradual")
    assert codes == [EXIT_USER_ERROR] and "freeze.schedule" in said
