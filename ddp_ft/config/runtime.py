"""The keys of evaluation, averages, checkpoints, logging and the machine."""

from dataclasses import dataclass

from ddp_ft.config.keys import key, machine_key


@dataclass(frozen=True)
class EvalConfig:
    """When to evaluate, and what decides which model is best."""

    every_epochs: int | None = key(
        None, "Epochs between evaluations; auto: 1, or more of them where --epochs is auto.", low=1, null="auto"
    )
    metric: str | None = key(
        None,
        "Decides which model is best; auto: accuracy, mAP, RMSE or F1, by task. Others: balanced_accuracy, macro_f1, "
        "micro_f1, auroc, ece, top5_accuracy, exact_match, mae, r2, precision, recall, unseen, loss.",
        flag="--metric",
        null="auto",
    )
    choose: str = key(
        "auto",
        "Which model is kept. best: the best one by eval.metric; latest: the latest one whose eval.metric is at most "
        "one standard error below the best, since the best may be luck; auto: latest without --epochs, best with it.",
        choices=("auto", "best", "latest"),
    )
    extra: str | None = key(
        None,
        "A torchmetrics class of your own to compute as well: FILE.py:CLASS.",
        names_file=True,
        code="FILE.py:CLASS",
    )
    tta: str = key(
        "none",
        "Views of each image whose mean prediction counts in the test, and in predict and evaluate afterwards: itself; "
        "its mirror image too (2); ten crops, half of them mirrored (10).",
        choices=("none", "flip", "crops"),
    )
    patience: int = key(0, "Stop after this many evaluations without a better one; 0: never.", flag="--patience", low=0)
    min_gain: float = key(0.0, "What a better evaluation must gain to count for patience.", low=0)


@dataclass(frozen=True)
class EmaConfig:
    """A moving average of the weights, evaluated beside them, or in their place."""

    decay: float | None = key(
        None,
        "Moving average of the weights: its decay at each step, such as 0.999; 0: no average; auto: 0 with --epochs; "
        "without it the average of the last tenth of the steps so far, evaluated and kept in place of the weights.",
        flag="--ema",
        low=0,
        high=0.999999,
        null="auto",
    )


@dataclass(frozen=True)
class CheckpointConfig:
    """When to save, and how much to keep."""

    every_steps: int = machine_key(0, "Steps between checkpoints, besides those at each epoch's end; 0: none.", low=0)
    every_minutes: float = machine_key(
        15.0, "Minutes between checkpoints, besides those at each epoch's end; 0: none.", low=0
    )
    keep: int = machine_key(2, "How many of the newest checkpoints to keep, besides the best.", low=1)
    keep_best: int = machine_key(1, "How many of the best checkpoints to keep.", low=1)
    max_failures: int = machine_key(
        3, "How many writes in a row may fail, on a full disk for example, before the run ends.", low=0
    )


# The names of what a run warns of at its start, what costs most first.
WARNINGS = (
    "job-time", "whole-run", "learning-rate", "batch-size", "weights", "classes-in-val", "classes", "class-balance",
    "imbalance", "steps", "validation-set", "image-sizes",
)  # fmt: skip


@dataclass(frozen=True)
class LogConfig:
    """What is logged during the run."""

    every_steps: int | None = machine_key(
        None, "Steps between lines of metrics; auto: 10, in short runs fewer.", low=1, null="auto"
    )
    trackers: str | None = machine_key(
        None,
        "Services that get the curves too: mlflow, wandb; several separated by commas.",
        flag="--track",
        lists=True,
    )
    level: str = machine_key(
        "info",
        "What is printed at least; the files in RUN/logs have all.",
        flag="--log-level",
        choices=("debug", "info", "warning", "error"),
    )
    silence: str | None = machine_key(
        None,
        "Warnings of the start that are not wanted, by their names; doctor has them all the same.",
        choices=WARNINGS,
        lists=True,
    )
    pictures: bool = machine_key(
        True, "TensorBoard: the first batch, and of each best evaluation its charts and its worst mistakes."
    )
    report: bool = machine_key(True, "Write report.html and model_card.md when the run is done.")
    histograms: bool = machine_key(False, "TensorBoard: how weights and gradients are spread, at each evaluation.")
    graph: bool = machine_key(False, "TensorBoard: the model's graph.")
    profile: str | None = machine_key(
        None, "Steps to trace with torch.profiler, such as 10-15; none: no trace.", flag="--profile"
    )


@dataclass(frozen=True)
class ComputeConfig:
    """On which device, and in which number format."""

    device: str = machine_key(
        "auto", "Where to compute; auto: CUDA if there is any.", flag="--device", choices=("auto", "cpu", "cuda")
    )
    precision: str = key(
        "auto",
        "Number format of the forward pass; auto: bf16 on CUDA that has it, else fp32.",
        flag="--precision",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    memory_format: str = key(
        "auto",
        "Order of an image's values in memory; auto: channels_last for convolutional models, else contiguous.",
        choices=("auto", "contiguous", "channels_last"),
    )
    deterministic: bool = key(
        False, "CUDA: kernels whose bits repeat, where there are any; an operation that has none is an error. Slower."
    )
    recompute: bool = machine_key(
        False,
        "Keep only what goes into each block of the model, and compute its inside again for the backward pass: much "
        "less memory, about a quarter more time, the same result.",
    )
    compress_gradients: str = key(
        "none",
        "Number format in which gradients go from process to process; bf16 halves what the network carries.",
        choices=("none", "bf16"),
    )
    compile: str = key(
        "false",
        "Compile the model with torch.compile: true: all of it; regional: its repeated blocks, which starts sooner.",
        choices=("false", "true", "regional"),
    )
    timeout_minutes: float = machine_key(30.0, "How long a rank waits for the others before it gives up.", above=0)
    silence_seconds: float = machine_key(
        60.0, "After how long without a sign of life a process counts as hanging, and the run ends.", above=2
    )
