"""Each option does something: one test that fails if it is ignored."""

import contextlib
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ddp_ft.config.schema import KEYS
from ddp_ft.errors import UserError
from ddp_ft.inference.trained_model import load_trained
from ddp_ft.run_folder.checkpoints import load_checkpoint
from ddp_ft.training.schedule import row_every
from tests.support.runs import column, read, rows, train_here

# Key -> the test that fails if it is ignored, here unless another file is named.
TESTED = {
    "data.path": "test_lengths_and_portions",
    "data.val_split": "test_val_split",
    "data.workers": "test_workers",
    "data.decoder": "test_decoder",
    "data.range": "data/image/test_value_range.py::test_a_run_and_what_is_made_of_it",
    "data.channels": "system/test_channels.py::test_the_same_curve_at_any_number_of_processes",
    "data.mean": "data/image/test_measured.py::test_what_is_given_is_taken",
    "data.std": "data/image/test_measured.py::test_what_is_given_is_taken",
    "data.on_error": "system/faults/test_damaged_images.py::test_runs_go_on_without_damaged_images",
    "data.max_damaged": "system/faults/test_damaged_images.py::test_runs_go_on_without_damaged_images",
    "data.image": "data/sources/test_table.py::test_column_of_images",
    "data.text": "data/text/test_texts.py::test_other_columns",
    "data.words": "data/sources/test_conll.py::test_lists_in_json_lines",
    "data.text_pair": "data/text/test_texts.py::test_other_columns",
    "data.bucket_by_length": "system/test_text.py::test_little_of_the_batches_is_padding",
    "data.max_length": "data/text/test_texts.py::test_length",
    "data.target": "data/sources/test_table.py::test_targets_of_several_values",
    "data.group": "data/sources/test_table.py::test_groups_stay_together",
    "data.weight": "data/sources/test_table.py::test_samples_of_a_table",
    "data.split": "data/sources/test_table.py::test_given_splits",
    "data.separator": "data/sources/test_table.py::test_labels_of_one_column",
    "data.class_folders": "data/splits/test_folder_roles.py::test_top_takes_train_for_a_class",
    "data.folds": "data/sources/test_table.py::test_the_tables_own_folds",
    "data.fold": "data/sources/test_table.py::test_folds_cover_everything_once",
    "data.unknown": "data/sources/test_table.py::test_unknown_labels_are_nan_where_they_are_masked",
    "data.sampling": "system/test_toolkit_options.py::test_what_changes_the_curve",
    "model.name": "test_lengths_and_portions",
    "model.weights": "test_weights",
    "model.image_size": "test_image_size",
    "model.batch_norm": "system/test_toolkit_options.py::test_what_changes_the_curve_of_batch_norm",
    "model.drop_path": "models/test_dropout_rates.py::test_stochastic_depth_of_timm",
    "head.name": "system/test_toolkit_options.py::test_what_changes_the_curve",
    "head.dropout": "system/test_toolkit_options.py::test_what_changes_the_curve",
    "head.activation": "system/test_toolkit_options.py::test_what_changes_the_curve",
    "head.norm": "system/test_toolkit_options.py::test_what_changes_the_curve",
    "head.bias": "system/test_toolkit_options.py::test_head_bias",
    "freeze.parts": "system/test_toolkit_options.py::test_frozen_parts_stay",
    "freeze.schedule": "system/test_toolkit_options.py::test_frozen_parts_stay",
    "freeze.cache_features": "system/test_toolkit_options.py::test_cached_features_give_what_frozen_images_give",
    "freeze.views": "system/faults/test_features.py::test_views",
    "freeze.cache_dir": "system/faults/test_features.py::test_a_cache_folder_for_several_runs",
    "freeze.cache_gb": "system/faults/test_features.py::test_a_bound_is_told_before_anything_is_computed",
    "adapter.name": "system/test_adapters.py::test_a_checkpoint_holds_what_learns",
    "adapter.rank": "models/adapters/test_layers.py::test_what_the_settings_change",
    "adapter.alpha": "models/adapters/test_layers.py::test_what_the_settings_change",
    "adapter.dropout": "models/adapters/test_layers.py::test_dropout_is_of_the_adapters_input_alone",
    "adapter.targets": "models/adapters/test_layers.py::test_targets_that_mean_nothing",
    "adapter.rslora": "models/adapters/test_layers.py::test_what_the_settings_change",
    "adapter.dora": "models/adapters/test_layers.py::test_what_the_settings_change",
    "probe.epochs": "system/test_toolkit_options.py::test_probe",
    "probe.lr": "system/test_toolkit_options.py::test_probe",
    "probe.weight_decay": "system/test_toolkit_options.py::test_probe",
    "probe.batch_size": "system/test_toolkit_options.py::test_probe",
    "train.max_steps": "system/test_toolkit_options.py::test_max_steps",
    "train.max_minutes": "system/test_toolkit_options.py::test_max_minutes",
    "train.epochs": "test_lengths_and_portions",
    "train.batch_size": "test_lengths_and_portions",
    "train.micro_batch": "training/test_step.py::test_micro_batch_bounds_the_forward_pass",
    "train.clip_norm": "test_clip_norm",
    "train.clip_value": "system/test_toolkit_options.py::test_what_changes_the_curve",
    "train.clip_agc": "system/test_toolkit_options.py::test_what_changes_the_curve",
    "optim.name": "test_optimizer",
    "optim.lr": "test_rates",
    "optim.weight_decay": "test_weight_decay",
    "optim.head_lr_scale": "test_rates",
    "optim.momentum": "test_momentum",
    "optim.layer_decay": "system/test_toolkit_options.py::test_what_changes_the_curve",
    "optim.relative": "system/test_toolkit_options.py::test_what_changes_the_curve",
    "optim.betas": "system/test_toolkit_options.py::test_what_changes_the_curve",
    "optim.options": "system/test_toolkit_options.py::test_what_changes_the_curve",
    "optim.overrides": "system/test_toolkit_options.py::test_what_changes_the_curve",
    "optim.l1": "system/test_toolkit_options.py::test_what_changes_the_curve",
    "optim.l2_sp": "system/test_toolkit_options.py::test_what_changes_the_curve_from_weights",
    "schedule.name": "test_schedules",
    "schedule.warmup": "test_schedules",
    "schedule.final_factor": "test_schedules",
    "schedule.every_epochs": "system/test_toolkit_options.py::test_steps_of_the_rate",
    "schedule.milestones": "system/test_toolkit_options.py::test_steps_of_the_rate",
    "schedule.gamma": "system/test_toolkit_options.py::test_steps_of_the_rate",
    "schedule.power": "system/test_toolkit_options.py::test_steps_of_the_rate",
    "schedule.patience": "system/test_toolkit_options.py::test_plateau",
    "loss.label_smoothing": "test_label_smoothing",
    "loss.name": "system/test_toolkit_options.py::test_what_changes_the_curve",
    "loss.class_weights": "system/test_toolkit_options.py::test_what_changes_the_curve",
    "loss.effective_beta": "system/test_toolkit_options.py::test_what_changes_the_curve",
    "loss.positive_weights": "tasks/test_class_weights.py::test_positive_weights_as_torch_weighs_them",
    "loss.focal_gamma": "system/test_toolkit_options.py::test_what_changes_the_curve",
    "loss.huber_delta": "tasks/test_losses.py::test_regression_is_of_standardised_numbers",
    "augment.crop_min": "test_augmentation",
    "augment.flip": "test_augmentation",
    "augment.vertical_flip": "system/test_toolkit_options.py::test_what_changes_the_curve",
    "augment.right_angles": "system/test_toolkit_options.py::test_what_changes_the_curve",
    "augment.rotation": "system/test_toolkit_options.py::test_what_changes_the_curve",
    "augment.translation": "system/test_toolkit_options.py::test_what_changes_the_curve",
    "augment.scale": "system/test_toolkit_options.py::test_what_changes_the_curve",
    "augment.grey": "system/test_toolkit_options.py::test_what_changes_the_curve",
    "augment.blur": "system/test_toolkit_options.py::test_what_changes_the_curve",
    "augment.preset": "system/test_toolkit_options.py::test_what_changes_the_curve",
    "augment.policy": "system/test_toolkit_options.py::test_what_changes_the_curve",
    "augment.magnitude": "system/test_toolkit_options.py::test_what_changes_the_curve",
    "augment.color_jitter": "system/test_toolkit_options.py::test_what_changes_the_curve",
    "augment.erasing": "system/test_toolkit_options.py::test_what_changes_the_curve",
    "augment.mixup": "system/test_toolkit_options.py::test_what_changes_the_curve",
    "augment.cutmix": "system/test_toolkit_options.py::test_what_changes_the_curve",
    "augment.transform": "data/image/test_own_transform.py::test_a_run_with_it",
    "eval.every_epochs": "test_eval_cadence",
    "eval.metric": "test_eval_metric",
    "eval.tta": "system/test_views.py::test_the_test_and_a_second_validation_are_with_views",
    "eval.choose": "system/test_course.py::test_a_better_model_by_more_than_luck_is_kept",
    "eval.extra": "system/test_toolkit_options.py::test_metric_of_the_users_own",
    "eval.patience": "system/test_toolkit_options.py::test_early_stopping",
    "eval.min_gain": "system/test_toolkit_options.py::test_early_stopping",
    "ema.decay": "system/test_toolkit_options.py::test_moving_average",
    "checkpoint.every_steps": "test_checkpoint_cadence",
    "checkpoint.every_minutes": "test_checkpoint_clock",
    "checkpoint.keep": "test_checkpoint_cadence",
    "checkpoint.keep_best": "system/test_toolkit_options.py::test_best_checkpoints",
    "checkpoint.max_failures": "system/faults/test_full_disk.py::test_a_run_ends_after_so_many_failures",
    "train.max_bad_steps": "system/faults/test_bad_steps.py::test_a_run_with_nothing_but_bad_steps_ends",
    "compute.deterministic": "test_deterministic_algorithms",
    "compute.recompute": "models/test_activation_checkpointing.py::test_a_run_has_the_same_bits",
    "compute.compress_gradients": "distributed/test_compression.py::test_a_run_with_compressed_gradients",
    "compute.silence_seconds": "system/faults/test_watchdog.py::test_a_rank_that_stands_still_is_noticed",
    "log.every_steps": "test_log_cadence",
    "log.trackers": "trackers/test_background.py::test_a_run_feeds_its_services",
    "log.silence": "diagnostics/test_advice.py::test_what_a_run_warns_of_at_its_start",
    "log.level": "trackers/test_console.py::test_how_much_is_said_and_what_is_logged",
    "log.pictures": "training/test_media.py::test_a_run_shows_its_images_and_learns_the_same",
    "log.histograms": "training/test_media.py::test_a_run_shows_its_images_and_learns_the_same",
    "log.graph": "training/test_media.py::test_a_run_shows_its_images_and_learns_the_same",
    "log.profile": "training/test_media.py::test_profile",
    "log.report": "cli/test_report.py::test_log_report",
    "compute.device": "system/test_errors.py::test_what_the_machine_lacks",
    "compute.precision": "test_precision",
    "compute.memory_format": "test_memory_format",
    "compute.compile": "training/test_compile.py::test_a_compiled_run_follows_the_eager_one",
    "compute.timeout_minutes": "distributed/test_failures.py::test_a_rank_that_does_not_come_is_given_up",
    "recipe": "system/test_toolkit_options.py::test_recipe",
    "task": "test_task",
    "seed": "test_seed",
}


def test_every_key_has_its_test():
    """Each is there, with the key's test in the file that is named."""
    assert set(TESTED) == set(KEYS)
    here = Path(__file__).parents[1]
    for reference in TESTED.values():
        file, _, name = reference.rpartition("::")
        assert f"def {name}(" in (here / (file or "system/test_options.py")).read_text(), reference


def steps_saved(run):
    return sorted(int(folder.name.removeprefix("step_")) for folder in run.glob("checkpoints/step_*"))


def last_state(run):
    return load_checkpoint(run / "checkpoints" / "last")[1]


def test_lengths_and_portions(shapes, tmp_path):
    train_here(shapes, tmp_path / "r", "--batch-size", 7, "--epochs", 2)
    plan, summary = read(tmp_path / "r", "plan.json"), read(tmp_path / "r", "summary.json")
    assert (plan["train_samples"], plan["val_samples"]) == (30, 12)
    assert (plan["steps_per_epoch"], plan["total_steps"], summary["step"]) == (math.ceil(30 / 7), 10, 10)
    assert read(tmp_path / "r", "best/model.json")["name"].endswith("nets.py:plain")


def test_val_split(shapes, tmp_path):
    train_here(shapes / "train", tmp_path / "r", "--val-split", 0.4)
    split = read(tmp_path / "r", "split.json")
    assert (len(split["train"]), len(split["val"])) == (18, 12)


def test_workers(shapes, tmp_path):
    train_here(shapes, tmp_path / "r0", "--workers", 0)
    train_here(shapes, tmp_path / "r1", "--workers", 2)
    assert [read(tmp_path / run, "plan.json")["workers"] for run in ("r0", "r1")] == [0, 2]
    assert column(tmp_path / "r0", "loss") == column(tmp_path / "r1", "loss")


def test_weights(shapes, tmp_path):
    train_here(shapes, tmp_path / "first")
    train_here(shapes, tmp_path / "second", "--weights", tmp_path / "first", "--recipe", "full", "--lr", 1e-9)
    first, second = (load_file(tmp_path / run / "best/model.safetensors") for run in ("first", "second"))
    torch.testing.assert_close(first, second)


def test_image_size(shapes, tmp_path):
    train_here(shapes, tmp_path / "r", "--image-size", 40)
    assert read(tmp_path / "r", "best/model.json")["preprocessing"]["size"] == [40, 40]


def test_clip_norm(shapes, tmp_path):
    """With plain SGD a step is as long as the gradient; a bound of almost 0 leaves the weights where they were."""
    for run, lr, norm in (("start", 1e-12, 0), ("held", 0.1, 1e-7), ("free", 0.1, 0)):
        sgd = ["--optimizer", "sgd", "--set", "optim.momentum=0", "--set", "optim.weight_decay=0", "--lr", lr]
        train_here(shapes, tmp_path / run, *sgd, "--set", f"train.clip_norm={norm}")
    start, held, free = (
        load_file(tmp_path / run / "checkpoints/last/model.safetensors")["0.weight"]
        for run in ("start", "held", "free")
    )
    assert float((held - start).norm()) < 1e-5 < 1e-3 < float((free - start).norm())


def test_optimizer(shapes, tmp_path):
    train_here(shapes, tmp_path / "r", "--optimizer", "lion")
    assert set(last_state(tmp_path / "r")["optimizer"]["state"][0]) == {"exp_avg"}


def test_momentum(shapes, tmp_path):
    train_here(shapes, tmp_path / "r", "--optimizer", "sgd", "--set", "optim.momentum=0.5")
    assert last_state(tmp_path / "r")["optimizer"]["param_groups"][0]["momentum"] == 0.5


def test_weight_decay(shapes, tmp_path):
    train_here(shapes, tmp_path / "r", "--set", "optim.weight_decay=0.3")
    decays = {group["name"]: group["weight_decay"] for group in last_state(tmp_path / "r")["optimizer"]["param_groups"]}
    assert decays == {"backbone": 0.3, "backbone_no_decay": 0.0, "head": 0.3, "head_no_decay": 0.0}


def test_rates(shapes, tmp_path):
    train_here(shapes, tmp_path / "r", "--lr", 0.01, "--set", "optim.head_lr_scale=3", "--schedule", "constant")
    assert max(column(tmp_path / "r", "lr/backbone")) == pytest.approx(0.01)
    assert max(column(tmp_path / "r", "lr/head")) == pytest.approx(0.03)


def test_schedules(shapes, tmp_path):
    """30 images in batches of 8, 5 epochs: 20 steps."""
    for name in ("constant", "linear"):
        more = ["--schedule", name, "--lr", 1, "--set", "schedule.warmup=0.2", "--set", "schedule.final_factor=0.5"]
        train_here(shapes, tmp_path / name, *more, epochs=5)
    warm_up = [0.2, 0.4, 0.6, 0.8]
    assert column(tmp_path / "constant", "lr/backbone") == pytest.approx(warm_up + [1.0] * 16)
    falling = [1 - 0.5 * step / 16 for step in range(16)]
    assert column(tmp_path / "linear", "lr/backbone") == pytest.approx(warm_up + falling)


def test_label_smoothing(shapes, tmp_path):
    for run, smoothing in (("hard", 0.0), ("soft", 0.5)):
        train_here(shapes, tmp_path / run, "--set", f"loss.label_smoothing={smoothing}")
    assert column(tmp_path / "hard", "loss")[0] != column(tmp_path / "soft", "loss")[0]


@pytest.mark.parametrize("changed", ["augment.crop_min=0.99", "augment.flip=0"])
def test_augmentation(shapes, tmp_path, changed):
    train_here(shapes, tmp_path / "base")
    train_here(shapes, tmp_path / "other", "--set", changed)
    assert column(tmp_path / "base", "loss")[0] != column(tmp_path / "other", "loss")[0]


def test_eval_cadence(shapes, tmp_path):
    train_here(shapes, tmp_path / "r", "--set", "eval.every_epochs=2", epochs=3)
    assert column(tmp_path / "r", "epoch", "val") == [2.0, 3.0]


def test_eval_metric(shapes, tmp_path):
    """Rows can disagree on which is best by loss and by accuracy; what is kept follows the metric."""
    for metric, better in (("loss", min), ("macro_f1", max)):
        train_here(shapes, tmp_path / metric, "--set", f"eval.metric={metric}", "--lr", 0.02, epochs=6)
        assert read(tmp_path / metric, "summary.json")["val"][metric] == better(
            column(tmp_path / metric, metric, "val")
        )
    with pytest.raises(UserError, match=r"eval.metric = 'acuracy'.*\n.*accuracy"):
        train_here(shapes, tmp_path / "bad", "--set", "eval.metric=acuracy")


def test_checkpoint_cadence(shapes, tmp_path):
    train_here(shapes, tmp_path / "r", "--set", "checkpoint.every_steps=3", "--set", "checkpoint.keep=99", epochs=2)
    assert steps_saved(tmp_path / "r") == [3, 4, 6, 8]
    train_here(shapes, tmp_path / "few", "--set", "checkpoint.keep=1", "--lr", 1e-9, epochs=4)
    best = read(tmp_path / "few", "summary.json")["best_step"]
    assert steps_saved(tmp_path / "few") == sorted({best, 16})


def test_checkpoint_clock(shapes, tmp_path):
    train_here(shapes, tmp_path / "r", "--set", "checkpoint.every_minutes=1e-9", "--set", "checkpoint.keep=99")
    assert steps_saved(tmp_path / "r") == [1, 2, 3, 4]


def test_log_cadence(shapes, tmp_path):
    train_here(shapes, tmp_path / "r", "--set", "log.every_steps=3")
    assert column(tmp_path / "r", "step") == [3, 4]
    train_here(shapes, tmp_path / "auto", "--set", "log.every_steps=auto")
    assert column(tmp_path / "auto", "step") == [1, 2, 3, 4]
    assert [row_every(steps) for steps in (1, 59, 60, 299, 300, 10**6)] == [1, 1, 2, 9, 10, 10]


def test_precision(shapes, tmp_path):
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU does not compute in bf16")
    for precision in ("fp32", "bf16"):
        train_here(shapes, tmp_path / precision, "--precision", precision)
    assert read(tmp_path / "bf16", "best/model.json")["precision"] == "bf16"
    fp32, bf16 = (column(tmp_path / run, "loss")[0] for run in ("fp32", "bf16"))
    assert fp32 != bf16 and fp32 == pytest.approx(bf16, rel=0.02)


@pytest.mark.parametrize("wanted", ["contiguous", "channels_last"])
def test_memory_format(shapes, tmp_path, wanted):
    """And what uses the model later follows it."""
    train_here(shapes, tmp_path / "r", "--set", f"compute.memory_format={wanted}")
    assert read(tmp_path / "r", "plan.json")["channels_last"] == (wanted == "channels_last")
    assert load_trained(tmp_path / "r", torch.device("cpu")).channels_last == (wanted == "channels_last")


def test_decoder(tmp_path):
    """Images that are four times as large as needed, in finer patterns than a shrunk one can have."""
    images = np.random.default_rng(0).integers(0, 255, (4, 160, 160, 3), dtype=np.uint8)
    for number, image in enumerate(images):
        for part in ("train", "val"):
            (folder := tmp_path / "data" / part / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number}.jpg")
    for decoder in ("auto", "shrink", "full"):
        train_here(tmp_path / "data", tmp_path / decoder, "--set", f"data.decoder={decoder}")
    losses = [column(tmp_path / run, "loss")[0] for run in ("auto", "shrink", "full")]
    assert losses[0] == losses[1] != losses[2]
    assert load_trained(tmp_path / "full", torch.device("cpu")).processor.preprocess.decoder == "full"


def test_seed(shapes, tmp_path):
    for run, seed in (("a", 1), ("b", 1), ("c", 2)):
        train_here(shapes, tmp_path / run, "--seed", seed)
    losses = [column(tmp_path / run, "loss") for run in "abc"]
    assert losses[0] == losses[1] != losses[2]


def test_task(shapes, tmp_path):
    train_here(shapes, tmp_path / "r", "--task", "single-label", "--dry-run")
    with pytest.raises(UserError, match="--task"):
        train_here(shapes, tmp_path / "r", "--task", "single")


def test_dry_run_writes_nothing(shapes, tmp_path, capsys):
    train_here(shapes, tmp_path / "r", "--dry-run")
    assert not (tmp_path / "r").exists()
    assert "30 train, 12 val" in capsys.readouterr().out


def test_config_file_repeats_a_run(shapes, tmp_path):
    from ddp_ft.train import train

    train_here(shapes, tmp_path / "a", "--lr", 0.003, "--set", "schedule.warmup=0.3")
    train.main(["--config", str(tmp_path / "a/config.yaml"), "--run-dir", str(tmp_path / "b")], standalone_mode=False)
    assert column(tmp_path / "a", "loss") == column(tmp_path / "b", "loss")
    assert (tmp_path / "a/config.yaml").read_text() == (tmp_path / "b/config.yaml").read_text()


def test_set_wins_over_flags_and_flags_over_the_file(shapes, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("optim:\n  lr: 0.5\nseed: 9\nloss:\n  label_smoothing: 0.2\n")
    train_here(shapes, tmp_path / "r", "--config", file, "--lr", 0.25, "--seed", 8, "--set", "seed=7", "--dry-run")
    train_here(shapes, tmp_path / "r", "--config", file, "--lr", 0.25, "--seed", 8, "--set", "seed=7")
    text = (tmp_path / "r/config.yaml").read_text()
    assert "lr: 0.25" in text and "seed: 7" in text and "label_smoothing: 0.2" in text


def test_extend_goes_on_and_shortening_is_refused(shapes, tmp_path):
    train_here(shapes, tmp_path / "r", epochs=2)
    with pytest.raises(UserError, match="--extend"):
        train_here(shapes, tmp_path / "r", epochs=3)
    train_here(shapes, tmp_path / "r", "--extend", epochs=3)
    assert column(tmp_path / "r", "step") == list(range(1, 13))
    with pytest.raises(UserError, match="never shortened"):
        train_here(shapes, tmp_path / "r", epochs=1)


def test_a_finished_run_is_not_run_again(shapes, tmp_path, capsys):
    train_here(shapes, tmp_path / "r")
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    assert train_here(shapes, tmp_path / "r") == 0
    assert "finished" in capsys.readouterr().out
    assert before == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}


def test_the_default_run_folder_is_named_after_data_and_model(shapes, tmp_path, monkeypatch):
    from ddp_ft.config.loading import make_config
    from ddp_ft.train import default_run_dir

    config = make_config({"data.path": str(shapes), "model.name": "timm/resnet18.a1_in1k"})
    assert str(default_run_dir(config)) == f"runs/{shapes.name}-resnet18.a1_in1k"
    for data, name in (("some/day 10:30", "day 10:30"), ("own.py:Plates", "own.py-Plates")):
        config = make_config({"data.path": data, "model.name": "net"})
        assert str(default_run_dir(config)) == f"runs/{name}-net"


def test_a_test_set_is_measured_once_with_the_best_model(shapes, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    for part, source in (("train", "train"), ("val", "val"), ("test", "val")):
        (tmp_path / "data" / part).symlink_to(shapes / source)
    train_here(tmp_path / "data", tmp_path / "r", "--lr", 0.01, epochs=3)
    summary = read(tmp_path / "r", "summary.json")
    assert len(rows(tmp_path / "r", "test")) == 1
    assert summary["test"] == summary["val"]  # the same images
    assert f"Testing the best model (epoch {summary['best_epoch']:g}) on 12 images.\n" in (
        said := capsys.readouterr().out
    )
    assert re.search(rf"\n +val +test\n  loss +({summary['val']['loss']:.4f})  +\1\n", said), said


@pytest.mark.parametrize("wanted", [True, False])
def test_deterministic_algorithms(shapes, tmp_path, monkeypatch, wanted):
    """The net uses an operation of which torch knows none that repeats."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    more = ["--set", f"compute.deterministic={wanted}", "--max-steps", 1]
    with pytest.raises(RuntimeError, match="deterministic") if wanted else contextlib.nullcontext():
        train_here(shapes, tmp_path / "r", *more, net="without_a_deterministic_operation")
    assert not torch.are_deterministic_algorithms_enabled()
