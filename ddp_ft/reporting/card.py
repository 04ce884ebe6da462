"""model_card.md: the description of a trained model for hubs of models, YAML and then text."""

import hashlib
import math
import shlex
from pathlib import Path
from typing import Any

from ddp_ft.config.paths import code_file
from ddp_ft.data.sources.table_file import is_table
from ddp_ft.errors import printable, shortened
from ddp_ft.reporting.choice import describe_choice, describe_views
from ddp_ft.reporting.facts import SPLITS, RunFacts
from ddp_ft.reporting.formats import metric_name, noun_of
from ddp_ft.reporting.reproduce import start_command
from ddp_ft.reporting.set_section import TITLES, Intervals, result
from ddp_ft.tasks.metric_table import METRICS
from ddp_ft.texts import count, plural
from ddp_ft.version import __version__

FILE = "model_card.md"
_MOST_NAMES = 50
_ESCAPED = str.maketrans({each: f"\\{each}" for each in "\\`*_{}[]<>#|~"})


def renewed_card(facts: RunFacts, found: Intervals, file: Path) -> str | None:
    """The new content of the card's file; None if a person has changed the present one."""
    if file.exists():
        body, _, mark = file.read_text(encoding="utf-8", errors="replace").rstrip("\n").rpartition("\n")
        if mark != _mark(body):
            return None
    text = card_text(facts, found).encode("utf-8", "replace").decode("utf-8")
    return f"{text}\n{_mark(text)}\n"


def _mark(text: str) -> str:
    return f"<!-- Written by ddp_ft; {hashlib.sha256(text.encode()).hexdigest()[:16]} -->"


def card_text(facts: RunFacts, found: Intervals) -> str:
    """The card of the best model, with YAML as huggingface_hub writes it."""
    from huggingface_hub import ModelCardData

    library, words = str(facts.description.get("library", "")), facts.task.words
    data = ModelCardData(
        model_name=facts.name,
        library_name=library if library in ("timm", "torchvision", "transformers") else None,
        license="unknown",
        pipeline_tag=_of_kind(facts, words.pipeline_tag or "") or None,
        tags=[_of_kind(facts, words.hub_type), "ddp_ft", *words.tags],
        base_model=_base_model(facts),
        datasets=[_data_type(facts)],
        metrics=sorted({_hub_metric(name) for split in SPLITS for name in facts.metrics(split)} - {"loss"}),
        eval_results=_results(facts) or None,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{_body(facts, found)}"


def _of_kind(facts: RunFacts, tag: str) -> str:
    """A hub's tag of images as that of the run's kind of samples: text-classification."""
    return tag.replace("image", noun_of(facts.description))


def _base_model(facts: RunFacts) -> str | None:
    """The hub's name of the pretrained weights; None if the run started from others."""
    if facts.description.get("library") != "timm" or facts.config.model.weights != "pretrained":
        return None
    from timm.models import get_pretrained_cfg

    name = str(facts.description.get("name", ""))
    cfg = get_pretrained_cfg(name)
    prefix = cfg.hf_hub_id if cfg is not None else None
    return f"{prefix}{name}" if prefix and prefix.endswith("/") else prefix


def _data_type(facts: RunFacts) -> str:
    """The form of the data, as the hub's loaders call it."""
    noun = noun_of(facts.description)
    path = facts.config.data.path
    if path is not None and code_file(path):
        return "custom"
    return path.suffix.lstrip(".").lower() if path is not None and is_table(path) else f"{noun}folder"


def _hub_metric(metric: str) -> str:
    return (metric in METRICS and METRICS[metric].hub_name) or printable(metric)


def _results(facts: RunFacts) -> list[Any]:
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=_of_kind(facts, facts.task.words.hub_type),
            dataset_type=_data_type(facts),
            dataset_name=facts.data_name,
            dataset_split="validation" if split == "val" else split,
            metric_type=_hub_metric(name),
            metric_name=metric_name(printable(name)),
            metric_value=round(value, 6),
        )
        for split in SPLITS
        for name, value in facts.metrics(split).items()
        if name != "loss" and math.isfinite(value)
    ]


def _body(facts: RunFacts, found: Intervals) -> str:
    noun = noun_of(facts.description)
    parts = {
        "": _introduction(facts),
        "Intended use": "_To be filled in: what the model is for, what it is not for, who has checked it on what._",
        "License": "_To be filled in, here and in the first lines: the license of the pretrained weights and that of "
        f"the training {noun}s both count._",
        "Training data": _data(facts),
        "Training": _procedure(facts),
        "Results": _result_table(facts, found),
        "How to use it": _loading(facts),
        "Reproduce": _command(facts),
    }
    return "\n\n".join((f"## {title}\n\n{text}" if title else text) for title, text in parts.items() if text)


def _text(value: object) -> str:
    """A value in one line of Markdown, with its special characters escaped."""
    return printable(str(value)).translate(_ESCAPED)


def _introduction(facts: RunFacts) -> str:
    noun = noun_of(facts.description)
    names = shortened([_text(name) for name in facts.names], _MOST_NAMES)
    size = facts.description.get("preprocessing", {}).get("size")
    article = "an" if noun == "image" else "a"
    pixels = f" of {size[0]} x {size[1]} pixels" if size else ""
    return (
        f"# {_text(facts.name)}\n\n{_text(facts.config.model.name)}, fine-tuned on {_text(facts.data_name)}. From "
        f"{article} {noun}{pixels} it {facts.task.words.verb} {names}."
    )


def _data(facts: RunFacts) -> str:
    noun = noun_of(facts.description)
    plan, test = facts.plan, facts.scored_sets.get("test")
    rows = {"training": plan.train_samples, "validation": plan.val_samples} | ({"test": len(test)} if test else {})
    table = "\n".join(f"| {name} | {count(number)} |" for name, number in rows.items())
    text = f"| set | {noun}s |\n|---|---:|\n{table}"
    if fingerprint := facts.split.get("fingerprint", ""):
        text += f"\n\nFingerprint of all {noun}s' paths, sizes and targets: `{printable(str(fingerprint))}`."
    return text


def _procedure(facts: RunFacts) -> str:
    config, plan, versions = facts.config, facts.plan, (facts.starts[-1].get("versions", {}) if facts.starts else {})
    weights = {"none": "random weights", "pretrained": "pretrained weights"}.get(str(config.model.weights))
    lines = [
        f"Started from {weights or f'the weights {_text(Path(str(config.model.weights)).name)}'}.",
        f"Recipe {_text(plan.recipe)}: {plural(facts.epochs, 'epoch')} of "
        f"{plural(plan.steps_per_epoch, 'step')}, global batch size {config.train.batch_size}, "
        f"{_text(config.optim.name)}, learning rate {plan.lr:g}, schedule {_text(config.schedule.name)}, "
        f"{_text(plan.precision)}, seed {config.seed}.",
    ]
    if choice := describe_choice(facts):
        lines.append(f"Model selection by {_text(metric_name(facts.metric))} on the validation set: {_text(choice)}.")
    if views := describe_views(facts):
        lines.append(f"Views at test time: {_text(views)}.")
    libraries = ", ".join(f"{_text(name)} {_text(version)}" for name, version in versions.items())
    lines.append(f"Made with {libraries or f'ddp_ft {__version__}'}.")
    return "\n".join(f"- {line}" for line in lines)


def _result_table(facts: RunFacts, found: Intervals) -> str:
    noun = noun_of(facts.description)
    rows = [
        f"| {TITLES[split]} | {_text(metric_name(name))} | {' | '.join(result(facts, found, split, name))} |"
        for split in reversed(SPLITS)
        for name in facts.metrics(split)
    ]
    if not rows:
        return "There is no evaluation yet."
    note = f"Intervals: percentile bootstrap over the {noun}s of the set; of a share of 0 or 100 % the exact one."
    if not facts.metrics("test"):
        note += " The validation set also chose the model, so these results are slightly optimistic."
    return "\n".join(["| set | metric | value | 95 % interval |", "|---|---|---:|---|", *rows, "", note])


def _command(facts: RunFacts) -> str:
    command = start_command(facts.starts[-1]) if facts.starts else ""
    return f"```bash\n{printable(command)}\n```" if command else ""


def _loading(facts: RunFacts) -> str:
    run = shlex.quote(f"runs/{facts.name}")
    text = f"```bash\nddp-ft predict {run} IMAGE... --output predictions.csv\n```"
    if facts.description.get("library") == "timm" and "head" not in facts.description:
        text += (
            "\n\nWithout ddp_ft, from `best/` of the run folder; `model.json` has the preprocessing and the classes:\n"
            "\n```python\nimport json, timm, safetensors.torch\n\n"
            'description = json.load(open("best/model.json"))\n'
            'model = timm.create_model(description["name"], pretrained=False, **description["arguments"])\n'
            'model.load_state_dict(safetensors.torch.load_file("best/model.safetensors"))\n```'
        )
    return text
