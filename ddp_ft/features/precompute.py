"""The features of a job's pictures: taken from its cache on the disk, and computed once where they are not there."""

import json
import math
import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ddp_ft.contracts import LabelledSource
from ddp_ft.data.bad_samples.replace import path_of
from ddp_ft.data.image.transforms import Transform, eval_transform, train_transform
from ddp_ft.errors import UserError
from ddp_ft.evaluation.evaluator import EVAL_CHUNK
from ddp_ft.features.cache import ChunkStore
from ddp_ft.features.dataset import FeatureSet
from ddp_ft.features.extractor import AugmentedView, Extracted, Extractor, labelled
from ddp_ft.features.key import describe_backbone, digest_names, key_of
from ddp_ft.models.backbone import MOST_FEATURE_BYTES, feature_width
from ddp_ft.run_folder.shared import SHARED_FOLDER_PATIENCE
from ddp_ft.training.state import Job

# In the run folder; named by the key, so that a later start with other weights or another torch finds nothing.
FOLDER = Path("cache/features")
_TOKEN = ".seen_"

Table = tuple[LabelledSource, Transform, Mapping[str, Any]]


def open_features(job: Job, train: LabelledSource, say: Callable[[str], None]) -> tuple[FeatureSet, FeatureSet]:
    """The features of the training set, in all its views, and of the validation set; the same on every rank.

    Raises UserError if they would take more than freeze.cache_gb, StopAgreed if all ranks were asked to stop: chunks
    that are complete are there at the next start.
    """
    val = job.splits.val
    size = 4 * feature_width(job.built) * (job.config.freeze.views * len(train) + len(val))
    _check_size(job, size)
    tables = [*_views(job, train), (val, eval_transform(job.built.preprocess), {})]
    stores, common, trouble = _open_stores(job, tables)
    if trouble:
        say(f"Warning: {trouble}; features are kept in memory, and computed again at the next start.")
    say(_announce(job, tables, stores))
    extractor = _extractor(job)
    found = [extractor.extract(*table[:2], store, common) for table, store in zip(tables, stores, strict=True)]
    _tell_of_troubles(job, found, say)
    on_device = MOST_FEATURE_BYTES
    return labelled(found[:-1], train, job.world.device, on_device), labelled(
        found[-1:], val, job.world.device, on_device
    )


def _check_size(job: Job, size: int) -> None:
    most = job.config.freeze.cache_gb
    if most and size > most * 2**30:
        raise UserError(
            f"The features of this data would take {size / 2**30:.1f} GiB; freeze.cache_gb allows {most:g}.",
            "Raise --set freeze.cache_gb=..., lower freeze.views, or train on pictures: --freeze backbone without "
            "freeze.cache_features.",
        )


def _views(job: Job, train: LabelledSource) -> list[Table]:
    """View 0 is as in evaluation; what the others are drawn from is part of their key."""
    config, preprocess = job.config, job.built.preprocess
    views: list[Table] = [(train, eval_transform(preprocess), {})]
    for view in range(1, config.freeze.views):
        transform = AugmentedView(train_transform(preprocess, config.augment), config.seed, view)
        views.append((train, transform, {"view": view, "seed": config.seed, "augment": vars(config.augment)}))
    return views


def _extractor(job: Job) -> Extractor:
    built, plan = job.built, job.plan
    return Extractor(
        module=built.module,
        head_path=built.head_path or "",
        task=job.task,
        prepare=job.prepare,
        world=job.world,
        precision=plan.precision,
        chunk=EVAL_CHUNK,
        threads=plan.threads,
        workers=plan.workers,
        in_rounds=job.agreement.in_rounds,
    )


def _open_stores(job: Job, tables: Sequence[Table]) -> tuple[Sequence[ChunkStore | None], bool, str]:
    """A store for each table, whether all ranks see the same ones, and why there are none, if there are none."""
    nothing: list[ChunkStore | None] = [None] * len(tables)
    if not job.config.freeze.cache_gb:
        return nothing, False, ""
    root = _root(job)
    names, token, trouble = job.world.from_main(lambda: _prepare(job, root, tables))
    if trouble:
        return nothing, False, trouble
    is_common = job.world.gather(_sees(root / names[0] / f"{_TOKEN}{token}"))
    common = job.world.from_main(lambda: all(is_common or []))
    job.world.from_main(lambda: (root / names[0] / f"{_TOKEN}{token}").unlink(missing_ok=True))
    for name in names:  # on a node with a disk of its own they are not there yet
        with suppress(OSError):  # writing will say so
            (root / name).mkdir(parents=True, exist_ok=True)
    return [ChunkStore(root / n, len(t[0]), EVAL_CHUNK) for n, t in zip(names, tables, strict=True)], common, ""


def _root(job: Job) -> Path:
    return job.config.freeze.cache_dir or job.folder.path / FOLDER


def _prepare(job: Job, root: Path, tables: Sequence[Table]) -> tuple[list[str], str, str]:
    """Rank 0: make the folders, and put something there that the others can look for."""
    backbone = describe_backbone(job.built, job.plan.to_mapping())
    backbone["data"], backbone["chunk"] = job.splits.fingerprint, EVAL_CHUNK
    descriptions = [{**backbone, **about, "pictures": _digest_of(source)} for source, _, about in tables]
    names, token = [key_of(description) for description in descriptions], secrets.token_hex(8)
    try:
        for name, description in zip(names, descriptions, strict=True):
            _describe(root / name, description)
        (root / names[0] / f"{_TOKEN}{token}").touch()
    except OSError as error:
        return names, token, f"{root} cannot be written to ({error.strerror})"
    if job.config.freeze.cache_dir is None:  # of an older version or other weights, and nobody else's
        for other in root.iterdir():
            if other.name not in names:
                shutil.rmtree(other, ignore_errors=True)
    return names, token, ""


def _describe(folder: Path, description: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "key.json").write_text(json.dumps(description, indent=2, default=str) + "\n", encoding="utf-8")


def _digest_of(source: LabelledSource) -> str:
    return digest_names(path_of(source, index) for index in range(len(source)))


def _sees(file: Path) -> bool:
    """Whether another rank's file shows up here. A network file system may be late."""
    deadline = time.monotonic() + SHARED_FOLDER_PATIENCE
    while not file.exists():
        if time.monotonic() > deadline:
            return False
        if file.parent.is_dir():
            os.scandir(file.parent).close()  # refreshes the cache of a network file system
        time.sleep(0.05)
    return True


def _announce(job: Job, tables: Sequence[Table], stores: Sequence[ChunkStore | None]) -> str:
    pictures = sum(len(source) for source, _, _ in tables)
    chunks = sum(math.ceil(len(source) / EVAL_CHUNK) for source, _, _ in tables)
    known = sum(store.known for store in stores if store)
    if known == chunks:
        return f"The features of {pictures} pictures are in {_root(job)}."
    rest = f"; {known} of {chunks} parts are in {_root(job)}" if known else ""
    return f"Computing the features of {pictures} pictures{rest}."


def _tell_of_troubles(job: Job, found: Sequence[Extracted], say: Callable[[str], None]) -> None:
    if damaged := sum(each.damaged for each in found):
        say(f"Warning: {damaged} stored parts of the features were damaged, and were computed again.")
    errors = {each.error for each in found if each.error}
    if lost := sorted({error for rank in job.world.gather(errors) or [] for error in rank}):
        say(f"Warning: features could not be stored ({'; '.join(lost)}); they are kept in memory.")
