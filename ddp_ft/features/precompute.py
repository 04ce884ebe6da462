"""The features of a run's images: read from their cache on the disk, or computed once; and what is refused."""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ddp_ft.config.schema import RunConfig
from ddp_ft.contracts import BuiltModel, LabelledSource, Log, Processor, Transform
from ddp_ft.distributed.world import World
from ddp_ft.errors import UserError
from ddp_ft.evaluation.chunk import EVAL_CHUNK
from ddp_ft.features.cache import ChunkStore
from ddp_ft.features.dataset import FeatureSet
from ddp_ft.features.extractor import AugmentedView, Extracted, Extractor, labelled
from ddp_ft.features.key import describe_backbone, describe_view, digest_names, key_of
from ddp_ft.models.backbone import MOST_FEATURE_BYTES, feature_width
from ddp_ft.run_folder.shared import put_token, seen_by
from ddp_ft.texts import plural, sample_noun

# In the run folder; named by the key, so that a later start with other weights or another torch finds nothing.
FOLDER = Path("cache/features")

# A source, its transform, and what besides the backbone the transform depends on, as JSON values.
Table = tuple[LabelledSource, Transform, Mapping[str, Any]]


@dataclass(frozen=True)
class FeatureFiles:
    """Where features are kept, and what they depend on. `root` None: in memory alone.

    `is_own`: the folder is the run's, so features of other weights or another version are removed from it. `plan` is
    the result of `Plan.to_mapping`, `fingerprint` the data's.
    """

    root: Path | None
    is_own: bool
    built: BuiltModel
    plan: Mapping[str, Any]
    fingerprint: str


def open_features(
    extractor: Extractor, files: FeatureFiles, train: Sequence[Table], val: Table, log: Log
) -> tuple[FeatureSet, FeatureSet]:
    """Return the features of the training set, in all its views, and of the validation set; the same on every rank.
    Raises StopAgreed if all ranks were asked to stop; the next start has the chunks that are complete."""
    tables = [*train, val]
    stores, common, trouble = _open_stores(extractor.world, files, tables)
    if trouble:
        log(f"Warning: {trouble}; features are kept in memory, and computed again at the next start.")
    log(_announce(files, tables, stores))
    found = [extractor.extract(*table[:2], store, common) for table, store in zip(tables, stores, strict=True)]
    _report_troubles(extractor.world, found, log)
    device, most = extractor.world.device, MOST_FEATURE_BYTES
    return labelled(found[:-1], train[0][0], device, most), labelled(found[-1:], val[0], device, most)


def training_views(train: LabelledSource, processor: Processor, config: RunConfig) -> list[Table]:
    """Return a table for each view: view 0 as in evaluation; the seed of the others is part of their key."""
    views: list[Table] = [(train, processor.eval_transform(), {})]
    decoded = replace(config, data=replace(config.data, decoder="auto"))  # by the loader, whatever training steps do
    for view in range(1, config.freeze.views):
        transform = AugmentedView(processor.train_transform(decoded), config.seed, view)
        views.append((train, transform, describe_view(config, view)))
    return views


def _open_stores(
    world: World, files: FeatureFiles, tables: Sequence[Table]
) -> tuple[Sequence[ChunkStore | None], bool, str]:
    """Return a store for each table, whether all ranks see the same ones, and why there are none, if there are none."""
    nothing: list[ChunkStore | None] = [None] * len(tables)
    root = files.root
    if root is None:
        return nothing, False, ""
    folders, token, trouble = world.from_main(lambda: _prepare(files, root, tables))
    if trouble:
        return nothing, False, trouble
    common = all(seen_by(world, folders[0] / token))
    for folder in folders:  # on a node with a disk of its own they are not there yet
        with suppress(OSError):  # writing will fail with the reason
            folder.mkdir(parents=True, exist_ok=True)
    return [ChunkStore(f, len(t[0]), EVAL_CHUNK) for f, t in zip(folders, tables, strict=True)], common, ""


def _prepare(files: FeatureFiles, root: Path, tables: Sequence[Table]) -> tuple[list[Path], str, str]:
    """On rank 0 make the folders, and a file there that the other ranks can look for; return the folders, the file's
    name, and what went wrong."""
    common = {**describe_backbone(files.built, files.plan), "data": files.fingerprint, "chunk": EVAL_CHUNK}
    descriptions = [{**common, **about, "pictures": digest_names(source)} for source, _, about in tables]
    folders = [root / key_of(description) for description in descriptions]
    try:
        for folder, description in zip(folders, descriptions, strict=True):
            folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(description, indent=2, default=str) + "\n"
            (folder / "key.json").write_text(text, encoding="utf-8")
        token = put_token(folders[0])
    except OSError as error:
        return folders, "", f"{root} cannot be written to ({error.strerror})"
    if files.is_own:
        for other in set(root.iterdir()).difference(folders):
            shutil.rmtree(other, ignore_errors=True)
    return folders, token, ""


def _announce(files: FeatureFiles, tables: Sequence[Table], stores: Sequence[ChunkStore | None]) -> str:
    samples = plural(sum(len(source) for source, _, _ in tables), sample_noun(tables[0][0].kind))
    chunks = sum(math.ceil(len(source) / EVAL_CHUNK) for source, _, _ in tables)
    known = sum(store.known for store in stores if store)
    if known == chunks:
        return f"The features of {samples} are in {files.root}."
    rest = f"; {known} of {chunks} chunks are in {files.root}" if known else ""
    return f"Computing the features of {samples}{rest}."


def _report_troubles(world: World, found: Sequence[Extracted], log: Log) -> None:
    if damaged := sum(each.damaged for each in found):
        log(f"Warning: {damaged} stored chunks of the features were damaged, and were computed again.")
    errors = {each.error for each in found if each.error}
    if lost := sorted({error for rank in world.gather(errors) or [] for error in rank}):
        log(f"Warning: features could not be stored ({'; '.join(lost)}); they are kept in memory.")


def check_features(config: RunConfig, built: BuiltModel) -> None:
    """Raise UserError for settings of features that do not go together, or not with the model."""
    cached, probed = config.freeze.cache_features, config.probe.epochs > 0
    mixes = bool(config.augment.mixup or config.augment.cutmix)
    if (cached or probed) and built.head_path is None:
        what = "freeze.cache_features" if cached else "probe.epochs"
        raise UserError(
            f"{what}: {config.model.name} does not end with its head, so its features cannot be cut off.",
            "Use --recipe full, or --freeze backbone to train the head alone on images.",
        )
    learns = config.freeze.parts != "backbone" or bool(config.freeze.schedule)
    if cached and (learns or mixes):
        raise _unfit(config, learns)
    if cached and config.freeze.views == 1 and config.augment.transform is not None:
        raise UserError(
            "augment.transform would never be called: the head is trained on features of the plain images.",
            "Add --set freeze.views=4 for augmented views of each image, or leave augment.transform out.",
        )
    if config.freeze.views > 1 and not (cached or probed):
        raise UserError(
            f"freeze.views = {config.freeze.views} is of features, and this run computes none.",
            "Add --recipe linear_probe or --set probe.epochs=20, or leave freeze.views at 1.",
        )


def _unfit(config: RunConfig, learns: bool) -> UserError:
    """The error for settings that change what is stored; it names what was asked for, which may be a recipe."""
    by_recipe = config.recipe == "linear_probe"
    asked = "--recipe linear_probe" if by_recipe else "freeze.cache_features"
    frozen = "freeze.schedule" if config.freeze.schedule else f"--freeze {config.freeze.parts}"
    other = f"with {frozen} more than the head learns" if learns else "mixup and cutmix mix the images"
    remedy = "use --recipe full, which trains on images" if by_recipe else "leave freeze.cache_features out"
    return UserError(
        f"{asked} trains the head on stored features that never change, and {other}.",
        f"Leave out {frozen if learns else 'mixup and cutmix'}, or {remedy}.",
    )


def check_size(built: BuiltModel, samples: int, most: float) -> None:
    """Raise UserError if the features of so many samples, each view counted, take more than `most` GiB; 0: any size."""
    size = 4 * feature_width(built) * samples
    if most and size > most * 2**30:
        raise UserError(
            f"The features of this data would take {size / 2**30:.1f} GiB; freeze.cache_gb allows {most:g}.",
            "Raise --set freeze.cache_gb=..., lower freeze.views, or train on images: --freeze backbone without "
            "freeze.cache_features.",
        )
