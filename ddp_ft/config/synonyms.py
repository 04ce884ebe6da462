"""What other tools call the options, and what they call some values. Free of torch.

The names are those of PyTorch Lightning, Transformers' Trainer, timm's train.py, Ultralytics, MMEngine, fastai,
torchrun and torchvision's references.
"""

# Our way -> the names without dashes, of which `-` and `_` are the same. What follows the first word is a remark.
_FLAGS: dict[str, str] = {
    "--processes N, or auto": "gpus num-gpus n-gpu n-gpus ngpus nproc nproc-per-node num-processes world-size ddp "
    "distributed strategy multi-gpu",
    "--device cpu or cuda": "accelerator use-cuda no-cuda cuda gpu",
    "--data": "dataset data-dir data-path data-root train-dir train-data dataset-dir root images folder source input",
    "--val-split": "validation-split val-pct valid-pct val-ratio val-size val-fraction test-size",
    "--model": "arch architecture backbone net network model-name model-name-or-path",
    "--weights pretrained, none, or a file": "pretrained no-pretrained initial-checkpoint finetune fine-tune "
    "checkpoint from-pretrained load-from pretrained-path",
    "--image-size": "img-size imgsz img input-size resolution crop-size image-resolution size train-crop-size",
    "--head": "classifier head-type",
    "--freeze backbone, or another part": "freeze-backbone freeze-layers freeze-encoder frozen-stages",
    "--epochs": "epoch num-epochs num-train-epochs max-epochs n-epochs nb-epochs",
    "--max-steps": "max-iters iters iterations num-steps max-train-steps steps",
    "--max-minutes": "max-time time-limit",
    "--batch-size, which counts the images of all processes": "batch bs batchsize train-batch-size "
    "per-device-train-batch-size per-gpu-batch-size samples-per-gpu global-batch-size",
    "--micro-batch, by which a batch is cut": "gradient-accumulation-steps grad-accum-steps accumulate accum-iter "
    "accumulate-grad-batches grad-accum update-freq",
    "--lr": "learning-rate lr0 base-lr blr max-lr",
    "--weight-decay": "wd decay l2",
    "--optimizer": "optim opt",
    "--schedule": "sched scheduler lr-scheduler lr-scheduler-type lr-schedule",
    "--warmup, a share of all steps": "warmup-epochs warmup-steps warmup-ratio lr-warmup-epochs num-warmup-steps",
    "--clip-norm": "clip-grad clip-grad-norm max-grad-norm gradient-clip-val grad-clip",
    "--loss": "criterion loss-fn loss-function objective",
    "--class-weights": "class-weight weighted-loss",
    "--augment": "aa auto-augment augmentation augmentations aug transforms data-augmentation",
    "--mixup": "mixup-alpha",
    "--cutmix": "cutmix-alpha",
    "--metric": "metric-for-best-model eval-metric monitor",
    "--patience": "early-stopping early-stop early-stopping-patience",
    "--ema, with a decay such as 0.999": "model-ema use-ema ema-decay model-ema-decay",
    "--precision bf16 or fp16": "amp fp16 bf16 half mixed-precision amp-dtype dtype native-amp use-amp",
    "--workers": "num-workers workers-per-gpu dataloader-num-workers cpus",
    "--seed": "random-seed random-state",
    "--run-dir": "name run-name exp-name experiment experiment-name output out output-dir save-dir save-path log-dir "
    "logdir work-dir default-root-dir logging-dir",
    "--track mlflow or wandb": "project wandb wandb-project mlflow report-to logger log-wandb tracker",
    "--log-level": "verbose verbosity loglevel",
    "--dry-run": "debug fast-dev-run sanity-check",
    "--tune": "auto-tune autotune auto-lr-find find-lr",
    "--recipe": "preset hparams",
    "--config": "cfg config-file",
    "--tta": "test-time-augmentation augment-test",
    "--top-k": "topk",
    "--device": "map-location",
    "--set eval.every_epochs=N": "eval-interval val-interval check-val-every-n-epoch eval-steps eval-every",
    "--set checkpoint.every_steps=N": "save-steps save-interval save-every save-freq save-period",
    "--set checkpoint.keep=N": "save-total-limit save-top-k max-keep-ckpts",
    "--set log.every_steps=N": "log-interval logging-steps log-every-n-steps print-freq",
    "--set loss.label_smoothing=0.1": "smoothing label-smoothing label-smoothing-factor",
    "--set loss.focal_gamma=2": "focal-gamma",
    "--set head.dropout=0.2": "drop drop-rate dropout",
    "--set model.drop_path=0.1": "drop-path drop-path-rate stochastic-depth",
    "--set model.batch_norm=sync": "sync-bn sync-batchnorm",
    "--set compute.compile=true": "compile torch-compile torchcompile",
    "--set compute.memory_format=channels_last": "channels-last",
    "--set compute.recompute=true": "grad-checkpointing gradient-checkpointing activation-checkpointing",
    "--set compute.deterministic=true": "deterministic cudnn-deterministic",
    "--set optim.momentum=0.9": "momentum",
    "--set optim.betas=[0.9,0.999]": "betas adam-beta1 opt-betas",
    "--set augment.erasing=0.25": "reprob random-erase random-erasing",
    "--set augment.color_jitter=0.4": "color-jitter",
    "--set augment.flip=0.5": "hflip fliplr horizontal-flip hflip-prob",
    "--set augment.vertical_flip=0.5": "vflip flipud vertical-flip vflip-prob",
    "--set augment.right_angles=0.5": "rot90 rotate90 rotate-90 random-rotate90",
    "--set augment.rotation=10, in degrees": "degrees rotate rotation max-rotate random-rotation",
    "--set augment.translation=0.1, a share of the side": "translate translation shift",
    "--set augment.scale=0.2 for the size, or augment.crop_min=0.6 for the crop": "scale zoom max-zoom",
    "--set augment.grey=0.2": "grayscale greyscale grayscale-prob random-grayscale",
    "--set augment.blur=0.5": "gaussian-blur gaussian-blur-prob random-blur",
    "--set data.channels=1": "in-chans in-channels input-channels num-channels channels ch",
    "--set data.mean=0.5,0.5,0.5": "mean img-mean pixel-mean",
    "--set data.std=0.25,0.25,0.25": "std img-std pixel-std",
    "--set data.fold=1/5": "fold k-fold kfold",
    "--set data.decoder=auto": "decoder",
}
# Of commands with a trained model, and of the inputs of `predict`: what comes before the names above.
_OF_MODELS: dict[str, str] = {
    "the first argument, RUN_OR_MODEL": "model run run-dir weights checkpoint ckpt ckpt-path resume load-from "
    "model-path model-dir pretrained",
    "--threshold": "conf conf-thres conf-threshold confidence thr thres thresh score-thr score-threshold min-score "
    "cutoff",
    "--batch-size": "batch bs batchsize eval-batch-size val-batch-size test-batch-size per-device-eval-batch-size",
    "--show FOLDER": "save-images save-img save-imgs save-vis save-dir show-dir vis vis-dir visualize visualise plot "
    "draw save",
    "--output FILE": "out out-file output-file results results-file save-txt save-csv csv work-dir output-dir",
    "--output - --format jsonl": "json jsonl",
    "--set data.image=COLUMN": "image-column path-column file-column x-col",
}
_OF_INPUTS: dict[str, str] = {
    "the arguments after RUN_OR_MODEL": "source input inputs image images img imgs data folder dataset data-dir "
    "data-path file files",
}
# What there is no option for, and why none is needed.
_WITHOUT: dict[str, str] = {
    "resume resume-from resume-from-checkpoint ckpt-path auto-resume restart": "The same command goes on where the run "
    "was, and another --run-dir begins anew. Weights of elsewhere: --weights FILE.",
    "overwrite force exist-ok overwrite-output-dir": "A run folder is never overwritten: give another --run-dir, or "
    "remove it.",
    "num-classes nb-classes classes nc num-labels": "The classes are those of the data.",
    "do-train do-eval train eval evaluate validate": "`train` evaluates after each epoch; `ddp-ft evaluate RUN` does "
    "it alone.",
    "local-rank rank master-port master-addr nnodes nodes dist-url backend": "torchrun or --processes sets "
    "that; several nodes: launch/multi_node.sh, or slurm/.",
}
_COMMANDS: dict[str, str] = {
    "train": "fit finetune fine-tune run start resume continue extend tune",
    "evaluate": "test val valid validate eval metrics score",
    "predict": "infer inference classify prediction",
    "doctor": "check verify diagnose validate-data",
    "export": "convert onnx save deploy",
    "fetch": "download pull",
    "runs": "list ls status history",
    "report": "compare summary plot",
    "config": "settings options keys cfg recipes",
    "models": "model zoo list-models info",
    "--help": "help",
    "--version": "version",
}
_VALUES: dict[str, dict[str, str]] = {
    "compute.device": {"cuda": "gpu 0 cuda:0 all nvidia", "auto": "default none"},
    "compute.precision": {
        "bf16": "bfloat16 bf16-mixed bf16-true amp mixed", "fp16": "16 float16 half 16-mixed",
        "fp32": "32 float32 full",
    },
    "loss.name": {
        "cross_entropy": "ce crossentropy xent nll nll_loss crossentropyloss cross-entropy softmax",
        "bce": "bcewithlogits bcewithlogitsloss binary_crossentropy binary_cross_entropy sigmoid",
        "mse": "l2 mseloss squared_error", "l1": "mae l1loss", "huber": "smooth_l1 smoothl1 huberloss",
        "focal": "focal_loss focalloss",
    },
    "schedule.name": {
        "cosine": "cosineannealing cosineannealinglr cosine_annealing cos cosine_with_warmup", "step": "steplr",
        "multistep": "multisteplr", "linear": "linear_with_warmup linearlr", "polynomial": "poly",
        "onecycle": "one_cycle onecyclelr 1cycle", "plateau": "reducelronplateau reduce_on_plateau",
        "constant": "none fixed constant_with_warmup",
    },
    "model.weights": {"pretrained": "imagenet true yes default", "none": "scratch false no random"},
    "eval.metric": {"accuracy": "acc top1 top-1 acc1", "macro_f1": "f1 f1_macro f1-macro", "auroc": "auc roc_auc"},
    "recipe": {
        "lp_ft": "lpft lp-ft", "fine_tune": "finetune fine-tune ft", "linear_probe": "lp probe linear",
        "full": "scratch from_scratch from-scratch",
    },
    "data.sampling": {"balanced": "oversample class_balanced", "natural": "none random"},
}  # fmt: skip


# Recipes of earlier versions, and their settings.
FORMER_RECIPES = {
    "heavy": "--augment heavy --ema 0.999",
    "gradual": "--set model.batch_norm=frozen --set \"freeze.schedule={0: backbone, 1: 'stages:-1', 2: none}\"",
}


def flag_answer(given: str, command: str = "train") -> str:
    """What to use in that command in place of an option of another tool, such as `--gpus`; empty if it is not
    known."""
    name = given.lstrip("-").lower().replace("_", "-")
    tables = {"predict": (_OF_INPUTS, _OF_MODELS), "evaluate": (_OF_MODELS,)}.get(command, ())
    for ours, names in (pair for table in (*tables, _FLAGS) for pair in table.items()):
        if name in names.split():
            return f"Here that is {ours}."
    return next((answer for names, answer in _WITHOUT.items() if name in names.split()), "")


def command_answer(given: str) -> str:
    """Which command does what one of that name does elsewhere, such as `fit`; empty if it is not known."""
    name = given.lower().replace("_", "-")
    ours = next((ours for ours, names in _COMMANDS.items() if name in names.split()), "")
    return f"Here that is ddp-ft {ours}." if ours else ""


def named_options(answer: str) -> list[str]:
    """The options and keys that an answer names."""
    words = [word.strip(".,:`") for word in answer.split()]
    return [word.partition("=")[0] for word in words if word.startswith("--") or "=" in word]


def value_answer(path: str, given: str) -> str:
    """What that key calls a value of another tool, such as `gpu`; empty if it is not known."""
    for ours, names in _VALUES.get(path, {}).items():
        if given.lower() in names.split():
            return f"Here that is {ours}."
    return ""
