"""The run folder: its small files, and whether it holds a run that this one resumes."""

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ddp_ft.config.keys import LENGTH, RECIPE
from ddp_ft.config.loading import make_config, read_config_file, to_flat, to_yaml
from ddp_ft.config.schema import RunConfig
from ddp_ft.errors import UserError
from ddp_ft.files import read_json, to_json, write_text

# `touch RUN/stop` asks for a stop; a later launch removes it.
STOP_FILE = "stop"


class RunFolder:
    """Paths and small files under runs/NAME/. Only rank 0 writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.best = path / "best"
        self.checkpoints = path / "checkpoints"

    def stored_config(self) -> RunConfig | None:
        """The configuration of an earlier start; None in a new folder."""
        file = self.path / "config.yaml"
        return make_config(read_config_file(file)) if file.exists() else None

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The object in a JSON file of the folder; None if there is no file."""
        return read_json(self.path / name, dict)

    def write_json(self, name: str, value: Mapping[str, Any] | list[Any]) -> None:
        """Replace a JSON file as a whole."""
        write_text(self.path / name, to_json(value))

    def create(self) -> None:
        """Make the folder and prove that it can be written to."""
        probe = self.path / ".write_probe"
        with self.writing():
            self.path.mkdir(parents=True, exist_ok=True)
            probe.write_text("")
            probe.unlink()

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
        if file.exists() and file.stat().st_mtime < launched:
            file.unlink(missing_ok=True)

    def write_config(self, config: RunConfig) -> None:
        """Store the whole configuration, so that `--config` on it repeats the run."""
        write_text(self.path / "config.yaml", to_yaml(config))


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
    if stored.train.epochs > config.train.epochs:
        raise UserError(
            f"{folder.path} holds a run of {stored.train.epochs} epochs; {config.train.epochs} were asked for.",
            "A run can be extended, never shortened. Choose another folder with --run-dir.",
        )
    if not extend and (longer := _differences(stored, config, LENGTH)):
        raise UserError(f"{folder.path} holds a run of another length:\n{longer}", "Add --extend to lengthen it.")


def check_same_data(folder: RunFolder, stored: Mapping[str, Any] | None, fingerprint: str) -> None:
    """UserError if `stored`, the run's split.json, is of other data: files, sizes or labels have changed since."""
    if stored is not None and stored["fingerprint"] != fingerprint:
        raise UserError(
            f"{folder.path} holds a run on other data: files, their sizes or their labels differ.",
            "Choose another folder with --run-dir, or bring back the data of that run.",
        )


def _differences(stored: RunConfig, config: RunConfig, kind: str) -> str:
    old, new = to_flat(stored, [kind]), to_flat(config, [kind])
    changed = [path for path in old if old[path] != new[path]]
    return "\n".join(f"  {path}: {_shown(old[path])} there, {_shown(new[path])} here" for path in changed)


def _shown(value: Any) -> Any:
    return "auto" if value is None else value
