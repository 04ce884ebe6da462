"""Which columns of a table are read. Free of torch: a name that is not there is found before anything slow begins."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ddp_ft.config.data import DataConfig
from ddp_ft.data.sources.conll import TAGS, WORDS
from ddp_ft.data.sources.table_file import is_table, read_header
from ddp_ft.errors import UserError, nearest, shortened

SPLIT_COLUMN, TEXT_COLUMN = "split", "text"
# What columns of tags are called where data.target does not say it.
_TAG_COLUMNS = (TAGS, "ner_tags", "labels")


@dataclass(frozen=True)
class Columns:
    """The names of a table's columns, by what is in them."""

    image: str  # empty if there are texts or words
    texts: tuple[str, ...]
    words: str  # empty if there are none
    targets: tuple[str, ...]
    group: str | None
    weight: str | None
    split: str | None
    folds: str | None = None

    @property
    def names(self) -> list[str]:
        """All of them."""
        others = (self.group, self.weight, self.split, self.folds)
        return [
            *(self.texts or [self.words or self.image]),
            *self.targets,
            *(name for name in others if name is not None),
        ]


def choose_columns(config: DataConfig, path: Path, header: Sequence[str], for_model: bool = False) -> Columns:
    """The configured columns. UserError if some are not in the header.

    A table `for_model`, which was trained on another one, need not have the columns that say what validates.
    """
    split = config.split
    if split is None or (for_model and split not in header):
        split = SPLIT_COLUMN if SPLIT_COLUMN in header else None
    folds = None if for_model and config.folds not in header else config.folds
    texts = _texts(config, header)
    words = "" if texts else _words(config, header)
    image = "" if texts or words else config.image
    columns = Columns(
        image, texts, words, _targets(config, header, bool(words)), config.group, config.weight, split, folds
    )
    _check(columns, path, header)
    return columns


def _texts(config: DataConfig, header: Sequence[str]) -> tuple[str, ...]:
    """The columns of texts: those that are configured; "text" if there is no column of images, nor one of words
    configured; else none."""
    pair = () if config.text_pair is None else (config.text_pair,)
    has_images = config.image in header or config.image != DataConfig().image
    if config.text is None and not pair and (has_images or config.words is not None or TEXT_COLUMN not in header):
        return ()
    return (config.text or TEXT_COLUMN, *pair)


def _words(config: DataConfig, header: Sequence[str]) -> str:
    """The column of lists of words: that which is configured; "tokens" if there is no column of images; else none."""
    if config.words is None and (config.image in header or config.image != DataConfig().image):
        return ""
    return config.words or (WORDS if WORDS in header else "")


def check_columns(config: DataConfig) -> None:
    """Raise UserError if the data are a table whose header lacks a configured column; nothing else is looked at."""
    if config.path is not None and is_table(config.path) and (header := read_header(config.path)):
        choose_columns(config, config.path, header)


def _targets(config: DataConfig, header: Sequence[str], of_words: bool) -> tuple[str, ...]:
    if of_words and config.target == DataConfig().target and config.target not in header:
        return (next((name for name in _TAG_COLUMNS if name in header), TAGS),)
    targets = [config.target]
    if config.target not in header:
        targets = [name for part in config.target.split(",") if (name := part.strip())]
    if len(set(targets)) < len(targets) or not targets:
        raise UserError(f"data.target = '{config.target}' is not one column, or several different ones.")
    return tuple(targets)


def _check(columns: Columns, path: Path, header: Sequence[str]) -> None:
    keys = ("text", "text_pair")
    one = ("words", columns.words) if columns.words else ("image", columns.image)
    contents = list(zip(keys, columns.texts, strict=False)) or [one]
    wanted = [*contents, *(("target", name) for name in columns.targets)]
    wanted += [
        (key, name) for key in ("group", "weight", "split", "folds") if (name := getattr(columns, key)) is not None
    ]
    if missing := [(f"data.{key}", name) for key, name in wanted if name not in header]:
        listed = ", ".join(f"'{name}' ({key})" for key, name in missing)
        guesses = [guess for _, name in missing if (guess := nearest(name, list(header), limit=1))]
        names = f"Its columns: {shortened([repr(name) for name in header], 20)}."
        if any((path.parent / name).is_file() for name in header):
            guesses = ["Its first line holds no names of columns, but an image: put a line such as image,label before."]
        hint = "\n".join([*guesses, names, f"Name another: --set {missing[0][0]}=COLUMN."])
        raise UserError(f"{path} has no column {listed}.", hint)
