"""Folders within a data set that hold what programs have written, and no data: runs, models, environments, caches."""

import re
from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from ddp_ft.run_folder.folder import FOLDERS

# A folder that has all names of one of these sets: a run (also one that was killed early, or that an older version
# wrote), a checkpoint, a model with its description, a table of features, an environment of Python.
_MARKS: tuple[frozenset[str], ...] = tuple(
    map(
        frozenset,
        (
            ("config.yaml", "plan.json"), ("config.yaml", "split.json"), ("config.yaml", "metrics.jsonl"),
            (".lease", "lease.json"), ("manifest.json", "model.safetensors"), ("model.json", "model.safetensors"),
            ("config.json", "model.safetensors"), ("key.json", "rows.f32"), ("pyvenv.cfg",), ("conda-meta",),
        ),
    )
)  # fmt: skip
# The folders of a run, for one that was written right into the data's folder; a test holds that this has them all.
OF_A_RUN = frozenset((*FOLDERS, "compile_cache", "wandb"))
# What archives, disk stations, file systems, Python and MLflow put beside other files. Some of it holds small copies
# of images, or cannot be read.
_OF_OTHERS = frozenset(
    ("__MACOSX", "__pycache__", "node_modules", "site-packages", "@eaDir", "@Recycle", "#recycle", "#snapshot",
     "$RECYCLE.BIN", "System Volume Information", "lost+found", "mlartifacts", "mlruns")
)  # fmt: skip
_UNFINISHED_PREDICTION = re.compile(r"\.\w+\.parts")


def is_output(names: AbstractSet[str]) -> bool:
    """Whether a folder with these entries is one of those."""
    return any(mark <= names for mark in _MARKS)


def may_be_data(names: Iterable[str], in_run: bool) -> set[str]:
    """Those of a folder's entries that may be data by their names; `in_run`: of a folder that is a run itself."""
    others = _OF_OTHERS | OF_A_RUN if in_run else _OF_OTHERS
    return {
        name
        for name in names
        if not (name.startswith(".") or name in others or _UNFINISHED_PREDICTION.search(name, pos=1))
    }
