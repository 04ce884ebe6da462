"""The keys of the data: where the images are, how they are read, and which of them validate."""

from dataclasses import dataclass
from pathlib import Path

from ddp_ft.config.keys import key, machine_key
from ddp_ft.config.paths import code_file

UNKNOWN = ("fail", "drop", "mask", "class")


@dataclass(frozen=True)
class DataConfig:
    """Where the images are and how they are read."""

    path: Path | None = machine_key(
        None,
        "Folder with train/, val/ and perhaps test/, or one folder a class; a CSV or Parquet table; or FILE.py:NAME.",
        flag="--data",
    )
    image: str = key("image", "Table: column of the images' paths, relative to the table.")
    text: str | None = key(
        None, "Table: column of texts; auto: 'text' where there is no column of images.", null="auto"
    )
    text_pair: str | None = key(None, "Table: column of second texts, for models of pairs of texts.")
    words: str | None = key(
        None,
        "Table: column of lists of words, each of which has a tag in data.target; auto: 'tokens' where there is no "
        "column of images or texts.",
        null="auto",
    )
    target: str = key("label", "Table: column of the labels or numbers; several separated by commas.", lists=True)
    group: str | None = key(None, "Table: column of groups, such as patients, that no split may divide.")
    weight: str | None = key(None, "Table: column of sample weights.")
    split: str | None = key(
        None, "Table: column that holds train, val or test; auto: 'split' if there is one.", null="auto"
    )
    separator: str = key(";", "Table: the text between the labels of an image that has several.")
    class_folders: str = key(
        "auto",
        "Folder: auto knows train, val, test and similar names, and stops where all class folders hold the same ones; "
        "top: the folders in --data are the classes, whatever they are called and hold.",
        choices=("auto", "top"),
    )
    # It decides which targets there are; those are compared with the run's at a restart, so that it need not be.
    unknown: str = machine_key(
        "fail",
        "Table: a target that is missing (an empty cell, nan, NA, null, None, ?; in columns of 0 and 1 also -1). fail "
        "ends the start; drop leaves its row out; mask lets it count for nothing, where an image has several labels; "
        "class takes such a word for a class.",
        choices=UNKNOWN,
    )
    fold: str | None = key(
        None, "k/n: validate on part k (1..n) of n instead of on --val-split; `ddp-ft kfold` trains all n."
    )
    folds: str | None = key(None, "Table: column of n folds, such as 1 to 5; data.fold = k/n then takes the k-th.")
    sampling: str = key(
        "natural",
        "Order of an epoch: each image once, or drawn so that classes are equally frequent, or by weight.",
        flag="--sampling",
        choices=("natural", "balanced", "weighted"),
    )
    val_split: float = key(
        0.15,
        "Share of the images held back for validation where there is no val/.",
        flag="--val-split",
        above=0,
        high=0.9,
    )
    max_length: int | None = key(
        None, "Text: the most tokens of a text; auto: as many as the model takes, but at most 512.", low=2, null="auto"
    )
    bucket_by_length: bool = key(
        True, "Text: batches are of texts of similar length, so that little of them is padding; false: any texts."
    )
    workers: int | None = machine_key(
        None,
        "Loader processes of each rank; auto: from the cores this process may use.",
        flag="--workers",
        low=0,
        null="auto",
    )
    decoder: str = key(
        "auto",
        "Large JPEGs are shrunk while they are decoded, or decoded in full; nvjpeg: those to train on in full, by the "
        "GPU; auto: shrink.",
        choices=("auto", "shrink", "full", "nvjpeg"),
    )
    range: tuple[float, ...] | None = key(
        None,
        "LOW,HIGH: the values of black and white in images of more than 8 bits, such as 0,4095; auto: measured on a "
        "sample of the training set.",
        null="auto",
    )
    channels: int | None = key(
        None,
        "Channels of an image: 1 is grey; others than 1 and 3 come from .npy files and TIFFs; auto: 3.",
        low=1,
        high=1024,
        null="auto",
    )
    mean: tuple[float, ...] | str | None = key(
        None,
        "What is subtracted from each channel (values of 0 to 1): numbers; train: the mean of a sample of the training "
        "set; auto: the model's own for 3 channels, else train.",
        low=0,
        high=1,
        words=("train",),
        null="auto",
    )
    std: tuple[float, ...] | str | None = key(
        None,
        "What each channel is then divided by: numbers, train or auto, as for the mean.",
        above=0,
        high=1,
        words=("train",),
        null="auto",
    )
    # These two decide whether a run continues and never with what, so a restart may change them.
    on_error: str = machine_key(
        "fail",
        "An image that cannot be read ends the run; or another one, always the same, takes its place.",
        choices=("fail", "skip"),
    )
    max_damaged: float = machine_key(
        0.01,
        "on_error = skip: the run ends when more than this share of a split's images cannot be read; one always may.",
        low=0,
        high=1,
    )

    @property
    def is_there(self) -> bool:
        """Whether there is something at the path."""
        return self.path is not None and (code_file(self.path) or self.path).exists()
