"""Models of transformers, from a folder, a run or the Hugging Face hub: `transformers/FOLDER_OR_NAME`.

Only the library's own classes are made: no code of a folder is run, and no pickle is opened.
"""

import importlib
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddp_ft.config.paths import path_of
from ddp_ft.contracts import SAMPLE, WORD, Batch, Call
from ddp_ft.data.text.inputs import TYPES, inputs_of
from ddp_ft.data.text.processor import TOKENIZER, TextProcessor
from ddp_ft.data.text.tokenizer import TOKENS, tokenizer_of
from ddp_ft.errors import UserError, one_line, reason_of
from ddp_ft.models.libraries.base import State
from ddp_ft.models.libraries.downloads import hub_offline, hub_reachable, not_fetched

ARGUMENTS: tuple[str, ...] = ()
# Of the dropout before the classifier: most encoders, DistilBERT, XLM and Flaubert.
DROPOUT = ("classifier_dropout", "seq_classif_dropout", "summary_first_dropout")
DROP_PATH: tuple[str, ...] = ()
CHANNELS: tuple[str, ...] = ()

CONFIG = "config.json"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
# What would make transformers run or download code, or load the weights in another form; and where they came from.
_REFUSED = ("auto_map", "custom_pipelines", "quantization_config", "attn_implementation", "_attn_implementation")
_LEFT_OUT = (
    "transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype", "id2label", "label2id",
    "problem_type", "num_labels",
)  # fmt: skip
# By what they classify: the library's tables of classes by configurations.
_CLASSES = {SAMPLE: "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING", WORD: "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING"}
_OF_WORDS = "ForTokenClassification"
# Lengths from here on are what transformers writes where a tokenizer has no limit.
_NO_LIMIT = 1 << 30
_HINT = "Expected the folder of a model that transformers wrote: config.json, model.safetensors, tokenizer files."


def names() -> list[str]:
    """None: models are folders, or on the hub."""
    return []


def knows(name: str) -> bool:
    """Whether it is a folder with a model, a class of the library, or may be a name on the hub."""
    return _as_folder(name) is not None or (bool(_HUB_NAME.fullmatch(name)) and not Path(name).exists())


def spec_name(name: str, unit: str = SAMPLE) -> str:
    """Return the library's class for the model: BertForSequenceClassification, or ...TokenClassification."""
    return str(_class_for(_read_config(name), name, unit).__name__)


def arguments(name: str, outputs: int, image_size: int | None) -> dict[str, Any]:
    """Return the model's configuration as a mapping. UserError for an image size."""
    if image_size is not None:
        raise UserError(
            f"--image-size {image_size} is for images, and transformers/{name} takes texts.", "Leave it out."
        )
    config = {key: value for key, value in _read_config(name).to_diff_dict().items() if key not in _LEFT_OUT}
    return {"num_classes": outputs, "config": {"model_type": _read_config(name).model_type, **config}}


def is_argument(name: str, value: Any) -> bool:
    """Whether it is a configuration without anything that makes transformers run or download code."""
    return name == "config" and isinstance(value, Mapping) and not _refused_in(value)


def create(spec_name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Build the class `spec_name` of its configuration; further arguments take the place of values in it."""
    more = {key: value for key, value in arguments.items() if key not in ("num_classes", "config")}
    config = _made_config({**arguments["config"], **more, "num_labels": arguments["num_classes"]})
    found = {each.__name__: each for unit in _CLASSES if (each := _class_of(config, unit)) is not None}
    if (known := found.get(spec_name)) is None:
        names = " or ".join(found) or "nothing of use here"
        raise UserError(f"A {config.model_type} is {names} in the installed transformers, not {spec_name}.")
    module: nn.Module = known(config)
    return module


def processor(name: str, module: nn.Module, image_size: int | None, weights: str) -> TextProcessor:
    """Return the model's tokenizer. UserError if it has none, or one with more words than the model knows."""
    made = replace(_read_tokenizer(str(_folder(name))), of_words=type(module).__name__.endswith(_OF_WORDS))
    words = _embedded(module)
    found = tokenizer_of(made.tokenizer, made.length).words
    if words is not None and found > words:
        raise UserError(f"transformers/{name}: its tokenizer has {found} tokens, the model {words}.", _HINT)
    return made


def call(module: nn.Module, batch: Batch) -> Any:
    """Call the network with the tokens, and return its logits, float B x outputs, or B x tokens x outputs."""
    return module(**inputs_of(batch)).logits


def call_with_inputs(names: Sequence[str]) -> Call:
    """How a program is called that takes inputs of these names in their order; all tokens are of the first text where
    there is no second one."""

    def called(module: nn.Module, batch: Batch) -> Any:
        given = {TYPES: torch.zeros_like(batch[TOKENS]), **inputs_of(batch)}
        return module(*(given[name] for name in names))

    return called


def pretrained(name: str) -> Path:
    """Return the file of the folder's weights, or of the hub's cache. UserError for weights in pickles."""
    folder = _folder(name, weights=True)
    file = next((folder / each for each in _WEIGHTS if (folder / each).is_file()), None)
    if file is None:
        pickles = sorted(each.name for each in folder.glob("*.bin"))
        also = f" It has {pickles[0]}, a pickle, which is not opened: it could run code." if pickles else ""
        raise UserError(f"{folder} has no model.safetensors.{also}", "Convert it: model.save_pretrained(FOLDER).")
    return file


def adapt(module: nn.Module, state: State) -> State:
    """Return it unchanged."""
    return state


def input_sizes(name: str) -> dict[str, list[int]]:
    """None: texts have no size."""
    return {}


def parameters(name: str, may_build: bool) -> int | None:
    """Not known without building it."""
    return None


def cache_folder() -> str:
    """Return the hub's."""
    from huggingface_hub import constants

    return constants.HF_HUB_CACHE


def files(spec: Mapping[str, Any], names: Sequence[str]) -> Mapping[str, bytes]:
    """config.json, with the names of the classes, for `from_pretrained`."""
    arguments = {key: value for key, value in spec["arguments"].items() if key != "num_classes"}
    config = _made_config({**arguments.pop("config"), **arguments})
    config.id2label = dict(enumerate(names))
    config.label2id = {name: place for place, name in enumerate(names)}
    config.architectures = [spec["name"]]
    return {CONFIG: config.to_json_string().encode()}


def _library() -> Any:
    """transformers, which is imported where it is needed. UserError if it is not installed."""
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise UserError(
            f"Models of texts need transformers: {one_line(error)}.", "Install it: pip install 'ddp_ft[text]'."
        ) from None


def _made_config(values: Mapping[str, Any]) -> Any:
    """The library's configuration of these values, "model_type" among them."""
    rest = {key: value for key, value in values.items() if key != "model_type"}
    return _library().AutoConfig.for_model(values["model_type"], **rest)


def _as_folder(name: str) -> Path | None:
    """The folder with config.json that the name means: itself, or a run's best/; None if there is none."""
    given = path_of(name)
    return next((each for each in (given, given / "best") if (each / CONFIG).is_file()), None)


def _folder(name: str, weights: bool = False) -> Path:
    """The folder of the model's files: its own, or that of the hub's cache, which is filled if the hub answers."""
    return _as_folder(name) or _from_hub(name, weights)


@lru_cache(maxsize=8)
def _from_hub(name: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    wanted = [CONFIG, "tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt", "*.model"]
    wanted += [*_WEIGHTS, "model-*.safetensors"] if weights else []
    online = hub_reachable()
    try:
        with hub_offline(not online):
            return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:
        reason = reason_of(error) if online else "no connection to the Hugging Face hub, and not in its cache"
        raise not_fetched(f"transformers/{name}", reason) from error


def _read_config(name: str) -> Any:
    """The library's configuration. UserError for what is none, and for one that asks for code of its own."""
    file = _folder(name) / CONFIG
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {reason_of(error)}.", _HINT) from None
    if asked := _refused_in(values):
        raise UserError(
            f"{file} asks for {' and '.join(asked)}: code of the folder is never run.",
            "If transformers has the model itself, remove that from config.json.",
        )
    try:
        return _library().AutoConfig.from_pretrained(file.parent, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise UserError(
            f"{file} is of no model that the installed transformers knows: {one_line(error)}.", _HINT
        ) from None


def _refused_in(values: Any) -> list[str]:
    """Those of _REFUSED that a configuration, or one inside it, asks for."""
    if not isinstance(values, Mapping):
        return []
    inside = [key for value in values.values() for key in _refused_in(value)]
    return [*(key for key in _REFUSED if values.get(key)), *inside]


def _class_for(config: Any, name: str, unit: str) -> Any:
    """The library's class that classifies texts, or their words, with such a model. UserError if there is none."""
    found = _class_of(config, unit)
    if found is None:
        what = {SAMPLE: "texts", WORD: "words"}[unit]
        raise UserError(f"transformers has no class that classifies {what} with a {config.model_type} ({name}).")
    return found


def _class_of(config: Any, unit: str) -> Any | None:
    classes = getattr(_library(), _CLASSES[unit])
    return classes.get(type(config), None)


def _read_tokenizer(folder: str) -> TextProcessor:
    """The folder's tokenizer, in the form that is loaded fastest."""
    try:
        tokenizer = _library().AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with tempfile.TemporaryDirectory() as aside:
            tokenizer.save_pretrained(aside)
            found = {file.name: file.read_bytes() for file in sorted(Path(aside).iterdir()) if file.suffix == ".json"}
        content = found.pop(TOKENIZER)
    except Exception as error:
        raise UserError(f"{folder} has no tokenizer that can be read: {one_line(error)}.", _HINT) from None
    return TextProcessor(
        content,
        tuple(found.items()),
        int(tokenizer.pad_token_id or 0),
        limit=tokenizer.model_max_length if tokenizer.model_max_length < _NO_LIMIT else None,
        types="token_type_ids" in tokenizer.model_input_names,
    )


def _embedded(module: nn.Module) -> int | None:
    """How many tokens the model knows."""
    embedding = getattr(module, "get_input_embeddings", lambda: None)()
    return embedding.weight.shape[0] if embedding is not None else None
