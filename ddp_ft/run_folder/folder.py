"""The run folder: its small files, and whether it holds a run that this one resumes."""

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ddp_ft.config.keys import LENGTH, RECIPE
from ddp_ft.config.loading import make_config, read_config_file, to_flat, to_yaml, value_text
from ddp_ft.config.schema import KEYS, RunConfig
from ddp_ft.errors import UserError
from ddp_ft.files import read_sound_json, to_json, write_text
from ddp_ft.run_folder.contents import (
    PURPOSES,
    Damaged,
    Row,
    check_encodable,
    damaged,
    read_content,
    read_rows,
    read_summary,
)
from ddp_ft.run_folder.folds import split_of_others
from ddp_ft.texts import plural

# `touch RUN/stop` asks for a stop; a later launch removes it.
STOP_FILE = "stop"
# What `ddp-ft report --learning-curve` has measured.
LEARNING_CURVE = "learning_curve.json"
# What a run writes, besides its probes and marks.
FILES = (
    "config.yaml", "plan.json", "classes.json", "split.json", "metrics.jsonl", "summary.json",
    "provenance.json", "quarantine.txt", "lease.json", ".lease", STOP_FILE, LEARNING_CURVE,
)  # fmt: skip
FOLDERS = (
    "best", "checkpoints", "evaluation", "tensorboard", "logs", "trackers", "stacks", "bad_batches", "cache", "profile",
)  # fmt: skip


class RunFolder:
    """Paths and small files under runs/NAME/. Only rank 0 writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.best = path / "best"
        self.checkpoints = path / "checkpoints"

    def stored_config(self) -> RunConfig | None:
        """The configuration of an earlier start; None in a new folder. UserError if it is damaged."""
        file = self.path / "config.yaml"
        if not file.exists():
            return None
        try:
            return make_config(_with_new_defaults(read_config_file(file)))
        except UserError as error:
            purpose, remedy = PURPOSES[file.name]
            named = error.message if str(file) in error.message else f"{file}: {error.message}"
            raise Damaged(named, f"It holds {purpose}. {remedy}") from None

    def classes(self) -> list[Any] | None:
        """classes.json; None if there is none. UserError if it is damaged."""
        return read_content(self.path / "classes.json", list)

    def summary(self) -> dict[str, Any]:
        """summary.json; empty if there is none. UserError if it is damaged."""
        return read_summary(self.path)

    def settled_task(self) -> str:
        """The task in plan.json; empty in a new folder, and if the file is damaged, which training makes anew."""
        try:
            stored = read_content(self.path / "plan.json", dict, {"task": (str,)})
        except Damaged:
            return ""
        return "" if stored is None else str(stored["task"])

    def rows(self) -> list[Row]:
        """The rows of metrics.jsonl, as `read_rows`."""
        return read_rows(self.path / "metrics.jsonl")

    def split(self) -> dict[str, Any] | None:
        """split.json; None if there is none. UserError if it is damaged."""
        stored = read_content(self.path / "split.json", dict, {"fingerprint": (str,)})
        sides = [] if stored is None or stored.get("given") else [stored.get("train"), stored.get("val")]
        if not all(isinstance(side, list) and all(isinstance(name, str) for name in side) for side in sides):
            raise damaged(self.path / "split.json", "does not name the samples of both sides")
        return stored

    def split_of_another_fold(self) -> dict[str, Any] | None:
        """split.json of another fold of the cross-validation that this run is in; None if there is none."""
        return split_of_others(self.path)

    def write_json(self, name: str, value: Mapping[str, Any] | list[Any]) -> None:
        """Replace a JSON file as a whole."""
        write_text(self.path / name, to_json(value))

    def create(self) -> None:
        """Make the folder and prove that it can be written to. UserError if not, or if something is in a part's way."""
        if self.path.resolve().parent == self.path.resolve():
            hint = "A variable before the slash may be empty. Choose a folder of its own with --run-dir."
            raise UserError(f"Run folder {self.path} is the root of the file system.", hint)
        check_encodable(self.path)
        probe = self.path / ".write_probe"
        with self.writing():
            self.path.mkdir(parents=True, exist_ok=True)
            probe.write_text("")
            probe.unlink()
        for names, is_kind, kind in ((FOLDERS, Path.is_dir, "folder"), (FILES, Path.is_file, "file")):
            for path in (self.path / name for name in names):
                if os.path.lexists(path) and not is_kind(path):
                    raise UserError(f"{path} is no {kind}, as the run needs there.", "Move it away.")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Raise UserError for an OSError of the block."""
        try:
            yield
        except OSError as error:
            room = "Make room, or choose" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Choose"
            hint = f"{room} another with --run-dir."
            raise UserError(f"Run folder {self.path} cannot be written to: {error.strerror}.", hint) from None

    def clear_old_stop(self, launched: float) -> None:
        """Remove a request to stop that is older than this launch (seconds since 1970)."""
        file = self.path / STOP_FILE
        if file.exists() and file.stat().st_mtime + _tick(file) < launched:
            file.unlink(missing_ok=True)

    def write_config(self, config: RunConfig) -> None:
        """Store the whole configuration, so that `--config` on it repeats the run."""
        write_text(self.path / "config.yaml", to_yaml(config))


def _with_new_defaults(stored: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of a run, also of a version that lacked some keys, whatever recipes say of them now, and that had
    other defaults for keys that are auto now, of the same meaning where epochs are given."""
    lacking = {path: key.default for path, key in KEYS.items() if path not in stored}
    if "eval.choose" in stored:
        return {**lacking, **stored}
    before = {"eval.every_epochs": "1", "ema.decay": "0.0"}
    known = {path: None if path in before and value == before[path] else value for path, value in stored.items()}
    return {**lacking, **known}


def _tick(file: Path) -> float:
    """By how many seconds a file's time may be too early: FAT and some network drives round down to 2 seconds."""
    return 2.0 if file.stat().st_mtime % 2 == 0 else 0.0


def check_same_recipe(folder: RunFolder, config: RunConfig, extend: bool) -> None:
    """UserError if the folder holds a run of another recipe, or of another length without `--extend`."""
    stored = folder.stored_config()
    if stored is None:
        return
    differences = _differences(stored, config, RECIPE)
    if differences:
        raise UserError(
            f"{folder.path} holds a run of another recipe:\n{differences}",
            "Choose another folder with --run-dir, or repeat the options of that run.",
        )
    _check_not_shorter(folder, stored, config, extend)
    if not extend and (longer := _differences(stored, config, LENGTH)):
        epochs = stored.train.epochs
        # Earlier versions wrote a number where none was given; --extend would ask for one.
        was_given = epochs is not None and config.train.epochs is None
        hint = f"Add --epochs {epochs} to go on with it." if was_given else "Add --extend to lengthen it."
        raise UserError(f"{folder.path} holds a run of another length:\n{longer}", hint)


def _check_not_shorter(folder: RunFolder, stored: RunConfig, config: RunConfig, extend: bool) -> None:
    """UserError for fewer epochs than the folder's run has, or for more that nobody counts."""
    there, here = stored.train.epochs, config.train.epochs
    if here is None:
        if extend and there is not None:
            raise UserError("--extend needs the new number of epochs.", f"Give --epochs; the run has {there}.")
        return
    if there is None:  # auto, which the plan knows
        there = read_sound_json(folder.path / "plan.json", dict).get("epochs")
    if isinstance(there, int) and there > here:  # a damaged plan is made anew
        raise UserError(
            f"{folder.path} holds a run of {plural(there, 'epoch')}; {here} asked for.",
            "A run can be extended, never shortened. Choose another folder with --run-dir.",
        )


def _differences(stored: RunConfig, config: RunConfig, kind: str) -> str:
    old, new = to_flat(stored, [kind]), to_flat(config, [kind])
    changed = [path for path in old if old[path] != new[path]]
    return "\n".join(
        f"  {path}: {value_text(path, old[path])} there, {value_text(path, new[path])} here" for path in changed
    )
