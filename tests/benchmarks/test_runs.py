"""Methods as options of the real command, and the runner: what is finished is not run again."""

import dataclasses
from pathlib import Path

import pytest

from benchmarks import methods as methods_module
from benchmarks.accuracy import choose, find_models, parse_sizes
from benchmarks.datasets import DataSet, open_digits
from benchmarks.methods import (
    AUTO,
    AUTOGLUON,
    BASELINE,
    BASELINE_LOWER_RATE,
    BEFORE,
    HUGGING_FACE,
    METHODS,
    Model,
    Run,
    Sizes,
    fit_sizes,
    make_draws,
    make_runs,
    one_in_turn,
    resolve,
    same_but_for_the_name,
    to_arguments,
)
from benchmarks.runner import RESULT, Result, collect, load_result, run_all, twin_of_auto, write_draws
from ddp_ft.config.loading import make_config, parse_assignment, to_flat
from ddp_ft.config.schema import RECIPES
from ddp_ft.errors import UserError
from ddp_ft.training.course import choose_course
from tests.support import (
    nets,
    ranks,  # noqa: F401  # its fork server has torch imported already, which the workers then need not do
)

SIZES = Sizes(train=40, val=20, test=30, epochs=1)
DIGITS = DataSet("digits", 1797, 10, 16, lambda: True, "nothing", open_digits, {"augment.flip": 0.0})
TINY = Model(f"{nets.THIS_FILE}:plain", lambda: "none", "nothing")


def some_runs(methods, seeds=1, sizes=SIZES):
    return make_runs({"digits": DIGITS}, {"tiny": (TINY, "none")}, methods, range(seeds), [("digits", sizes, "tiny")])


def fake(run, recipe, **changes):
    result = Result(
        run.data_set,
        run.model,
        run.sizes.train,
        run.method,
        run.seed,
        recipe,
        {"accuracy": 0.5},
        {"accuracy": 0.25},
        1,
        1,
        "",
    )
    return dataclasses.replace(result, **changes)


def test_by_the_book_is_what_its_name_says():
    """Whatever the defaults and the recipe `full` come to say."""
    wanted = {
        "optim.name": "adamw", "optim.lr": 1e-3, "optim.weight_decay": 0.01, "optim.head_lr_scale": 1.0,
        "optim.layer_decay": 1.0, "optim.betas": None, "optim.l1": 0.0, "optim.l2_sp": 0.0, "optim.overrides": None,
        "schedule.name": "constant", "schedule.warmup": 0.0, "loss.label_smoothing": 0.0, "train.clip_norm": 0.0,
        "train.clip_value": 0.0, "train.clip_agc": 0.0, "freeze.parts": "none", "freeze.schedule": None,
        "probe.epochs": 0, "ema.decay": 0.0, "augment.preset": "light", "head.name": "linear",
        "data.sampling": "natural", "loss.class_weights": None,
    }  # fmt: skip
    resolved = resolve(METHODS[BASELINE])
    assert {path: resolved[path] for path in wanted} == wanted
    lower = resolve(METHODS[BASELINE_LOWER_RATE])
    assert {path for path in lower if lower[path] != resolved[path]} == {"optim.lr"} and lower["optim.lr"] == 3e-4


def test_every_recipe_is_measured():
    assert set(RECIPES) | {AUTO, BASELINE} <= set(METHODS)
    assert METHODS[AUTO] == {}


def test_the_options_say_what_the_settings_say():
    [run] = some_runs([BASELINE])
    words = to_arguments(run.settings)
    layers = []
    for flag, value in zip(words[::2], words[1::2], strict=True):
        by_flag = {key.flag: path for path, key in methods_module.KEYS.items() if key.flag}
        layers.append(parse_assignment(value) if flag == "--set" else {by_flag[flag]: value})
    assert to_flat(make_config({k: v for layer in layers for k, v in layer.items()})) == to_flat(
        make_config(run.settings)
    )


def test_methods_of_others_are_what_their_names_say():
    """The rates and decays of their defaults, and nothing of ours: no probe, no average, the best of all epochs."""
    theirs = {HUGGING_FACE: (5e-5, 0.0, "linear", 1.0), AUTOGLUON: (1e-4, 1e-3, "cosine", 0.9)}
    for method, wanted in theirs.items():
        found = resolve(METHODS[method])
        keys = "optim.lr", "optim.weight_decay", "schedule.name", "optim.layer_decay"
        assert tuple(found[key] for key in keys) == wanted
        assert (found["probe.epochs"], found["ema.decay"], found["eval.choose"]) == (0, 0.0, "best")


def test_a_draw_leaves_enough_to_test_on():
    """Half as many to choose by, 400 at most; of 703 images what is left but for one a class; not 2,000 of 1,797."""
    small = dataclasses.replace(DIGITS, images=703)
    assert fit_sizes(small, 400) == Sizes(400, 200, 703 - 600 - 10)
    assert fit_sizes(DIGITS, 400, epochs=3) == Sizes(400, 200, 600, 3)
    assert fit_sizes(dataclasses.replace(DIGITS, images=60_000), 2000, test=500) == Sizes(2000, 400, 500)
    assert make_draws({"digits": DIGITS, "small": small}, [100, 2000], 90, None) == [
        ("digits", Sizes(100, 50, 90)), ("small", Sizes(100, 50, 90)),
    ]  # fmt: skip


def test_models_take_turns_over_sizes_and_sets():
    draws = [(name, Sizes(train)) for name in ("a", "b", "c") for train in (100, 400)]
    found = [model for *_, model in one_in_turn(draws, ["m", "n"])]
    assert found == ["m", "n", "n", "m", "m", "n"]
    assert one_in_turn(draws[:1], ["m"]) == [("a", Sizes(100), "m")]


def test_a_result_is_compared_within_its_size():
    runs = make_runs(
        {"digits": DIGITS}, {"tiny": (TINY, "none")}, ["full", AUTO], range(2),
        [("digits", SIZES, "tiny"), ("digits", dataclasses.replace(SIZES, train=50), "tiny")],
    )  # fmt: skip
    first = next(run for run in runs if run.method == AUTO)
    finished = {first: fake(first, "full")}
    twins = {run: twin_of_auto(run, runs, finished) for run in runs if run.method == AUTO and run.seed == 1}
    assert [(run.sizes.train, twin and twin.sizes.train) for run, twin in twins.items()] == [(40, 40), (50, None)]


def test_all_methods_take_as_many_steps_as_auto():
    sizes = dataclasses.replace(SIZES, epochs=None)
    auto, book, before = some_runs([AUTO, BASELINE, BEFORE], sizes=sizes)
    assert "train.epochs" not in auto.settings and before.settings["train.epochs"] == 3
    assert book.settings["train.epochs"] == choose_course(make_config(), 40, 10).epochs
    [full] = some_runs(["full"], sizes=sizes)
    assert "train.epochs" not in full.settings  # a recipe of ours has a length of its own


def test_seeds_are_outermost():
    runs = some_runs(["full", "lp_ft"], seeds=2)
    assert [(run.seed, run.method) for run in runs] == [(0, "full"), (0, "lp_ft"), (1, "full"), (1, "lp_ft")]


def test_another_setting_is_another_folder():
    [run] = some_runs(["full"])
    [same] = some_runs(["full"])
    [longer] = some_runs(["full"], sizes=dataclasses.replace(SIZES, epochs=2))
    [larger] = some_runs(["full"], sizes=dataclasses.replace(SIZES, test=31))
    smoother = dataclasses.replace(run, settings={**run.settings, "loss.label_smoothing": 0.3})
    assert run.folder == same.folder
    assert len({each.folder for each in (run, longer, larger, smoother)}) == 4
    moved = dataclasses.replace(run, settings={**run.settings, "model.weights": "elsewhere/a.pth"})
    moved_again = dataclasses.replace(run, settings={**run.settings, "model.weights": "/other/a.pth"})
    assert moved.digest() == moved_again.digest() != run.digest()


def test_a_changed_recipe_is_another_folder(monkeypatch):
    digests = [run.digest() for run in some_runs(["lp_ft", AUTO, BASELINE])]
    monkeypatch.setattr("ddp_ft.config.loading.RECIPE_FOLDER", Path("nowhere"))
    monkeypatch.setattr("ddp_ft.config.loading.read_recipe", lambda name: {"probe.epochs": 7, "freeze.parts": "none"})
    monkeypatch.setattr("benchmarks.methods.read_recipe", lambda name: {"probe.epochs": 7})
    changed = [run.digest() for run in some_runs(["lp_ft", AUTO, BASELINE])]
    assert all(old != new for old, new in zip(digests, changed, strict=True))


def test_what_auto_stands_for():
    assert same_but_for_the_name({"seed": 1}, {"seed": 1, "recipe": "lp_ft"}, "lp_ft")
    assert not same_but_for_the_name({"seed": 1}, {"seed": 1, "recipe": "full"}, "lp_ft")
    assert not same_but_for_the_name({"seed": 1}, {"seed": 2, "recipe": "lp_ft"}, "lp_ft")


def test_auto_is_trained_once_and_shared_after_that():
    runs = some_runs(["full", "lp_ft", AUTO], seeds=2)
    finished = {run: fake(run, run.method) for run in runs if run.method != AUTO}
    first, second = (run for run in runs if run.method == AUTO)
    assert twin_of_auto(first, runs, finished) is None and twin_of_auto(second, runs, finished) is None
    finished[first] = fake(first, "lp_ft")
    assert twin_of_auto(first, runs, finished) is None
    twin = twin_of_auto(second, runs, finished)
    assert (twin.method, twin.seed) == ("lp_ft", 1)
    finished[twin] = fake(twin, "lp_ft", test={"accuracy": 0.75})
    shared = [result for result in collect(runs, finished) if result.shared]
    assert [(each.method, each.seed, each.test["accuracy"]) for each in shared] == [(AUTO, 1, 0.75)]


def test_auto_is_not_shared_with_what_is_not_measured_or_not_equal():
    runs = some_runs(["full", AUTO], seeds=2)
    first, second = (run for run in runs if run.method == AUTO)
    assert twin_of_auto(second, runs, {first: fake(first, "lp_ft")}) is None
    assert twin_of_auto(second, runs, {first: fake(first, "full")}).method == "full"
    other = dataclasses.replace(runs[2], settings={**runs[2].settings, "optim.lr": 0.5})
    assert twin_of_auto(second, [runs[0], first, other, second], {first: fake(first, "full")}) is None


def test_what_is_asked_for_is_checked():
    assert choose("full, lp_ft", METHODS, "method") == ["lp_ft", "full"]
    assert choose("all", METHODS, "method") == list(METHODS)
    with pytest.raises(UserError, match="lp_ft"):
        choose("lpft", METHODS, "method")


@pytest.mark.parametrize("given", ["100,5", "many", "100,", "-100"])
def test_sizes_are_checked(given):
    with pytest.raises(UserError, match=f"--train {given}"):
        parse_sizes(given)
    assert parse_sizes("100, 2000") == [100, 2000]


def test_a_model_without_weights_is_left_out_with_a_line(monkeypatch):
    monkeypatch.setitem(methods_module.MODELS, "mobilenet_v2", Model("torchvision/x", lambda: None, "the package y"))
    here, lines = find_models(["mobilenet_v2"])
    assert here == {} and lines == ["torchvision/x: needs the package y."]


@pytest.mark.slow
def test_a_training_is_run_once_and_kept_small(tmp_path):
    """Real trainings of a tiny model. One that fails does not stop the others; the second start skips the first's."""
    first, second = some_runs([BASELINE, "full"])
    broken = dataclasses.replace(first, seed=7, settings={**first.settings, "model.weights": "nowhere.pth"})
    write_draws(tmp_path, [first, broken], {"digits": DIGITS})
    told = []

    def start(runs):
        told.clear()
        return run_all(tmp_path, runs, 1, 1, lambda run, outcome, left: told.append((run, outcome, left)))

    finished = start([broken, first])
    assert [run for run, _, _ in told] == [broken, first] and [left for *_, left in told] == [1, 0]
    assert isinstance(told[0][1], UserError) and broken not in finished
    check_result(tmp_path, first, finished[first])
    written = (tmp_path / first.folder / RESULT).stat().st_mtime_ns
    again = start([first, second])
    assert [run for run, _, _ in told] == [second] and set(again) == {first, second}
    assert again[first] == finished[first]
    assert (tmp_path / first.folder / RESULT).stat().st_mtime_ns == written


def check_result(root: Path, run: Run, result: Result) -> None:
    folder = root / run.folder
    assert load_result(root, run) == result
    assert result.recipe == "full" and 0 <= result.test["accuracy"] <= 1 and "balanced_accuracy" in result.test
    assert result.seconds > 0 and result.cpu_seconds > 0 and "1 thread(s)" in result.machine
    names = {entry.name for entry in folder.iterdir()}
    assert {RESULT, "summary.json", "plan.json", "config.yaml", "metrics.jsonl", "output.txt"} == names
    stored = (folder / "config.yaml").read_text()
    assert "name: constant" in stored and "flip: 0.0" in stored
