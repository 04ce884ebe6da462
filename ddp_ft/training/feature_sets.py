"""The features that a run trains its head on."""

from ddp_ft.contracts import Say
from ddp_ft.evaluation.evaluator import EVAL_CHUNK
from ddp_ft.features.check import check_size
from ddp_ft.features.dataset import FeatureSet
from ddp_ft.features.extractor import Extractor
from ddp_ft.features.precompute import FOLDER, FeatureFiles, open_features, training_views
from ddp_ft.training.batches import training_source
from ddp_ft.training.run import Run


def feature_sets(run: Run, say: Say) -> tuple[FeatureSet, FeatureSet]:
    """Of the training set, in all its views, and of the validation set. Collective; may raise StopAgreed.

    UserError if they are more than is allowed.
    """
    config, model, plan, train, val = run.config, run.model, run.plan, training_source(run), run.splits.val
    cache = config.freeze
    check_size(model, cache.views * len(train) + len(val), cache.cache_gb)
    root = (cache.cache_dir or run.folder.path / FOLDER) if cache.cache_gb else None
    files = FeatureFiles(root, cache.cache_dir is None, model, plan.to_mapping(), run.splits.fingerprint)
    extractor = Extractor(
        module=model.module,
        head_path=model.head_path or "",
        call=model.call,
        prepare=run.prepare,
        world=run.world,
        precision=plan.precision,
        chunk=EVAL_CHUNK,
        threads=plan.threads,
        workers=plan.workers,
        in_rounds=run.agreement.in_rounds,
    )
    views = training_views(train, model.processor, config)
    return open_features(extractor, files, views, (val, model.processor.eval_transform(), {}), say)
