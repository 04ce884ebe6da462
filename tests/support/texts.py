"""Texts of three classes, and a small encoder for them."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

CLASSES = {
    "sea": "wave ship salt tide gull harbour",
    "wood": "oak moss deer path fern owl",
    "city": "tram roof neon clerk",
}
FILLING = "the a of in and was were near by old new grey some then there"
WORDS = f"{' '.join(CLASSES.values())} {FILLING} . ,".split()


def sentences(count: int, seed: int = 0) -> Iterator[tuple[str, str]]:
    """(class, text), of 4 to 30 words, some of which tell the class."""
    draw = random.Random(seed)
    for number in range(count):
        name = list(CLASSES)[number % len(CLASSES)]
        words = draw.choices(FILLING.split(), k=draw.randint(3, 20)) + draw.choices(CLASSES[name].split(), k=3)
        draw.shuffle(words)
        yield name, " ".join(words)


def write_classes(folder: Path, count: int = 60, seed: int = 0) -> Path:
    """Folders of .txt files, one for each class."""
    for number, (name, text) in enumerate(sentences(count, seed)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / f"{number:03d}.txt").write_text(text, encoding="utf-8")
    return folder


def write_lines(file: Path, count: int = 60, seed: int = 0) -> Path:
    """JSON lines."""
    rows = [{"text": text, "label": name} for name, text in sentences(count, seed)]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file


def write_encoder(folder: Path, dropout: float = 0.0, **changes: object) -> Path:
    """A BERT of two layers, 32 wide, with random weights, as transformers writes it, and its tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate([*special, *WORDS])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=64, model_input_names=inputs, **names
    ).save_pretrained(folder)
    # Larger weights than at BERT's own start, so that each word counts and there is something to learn on.
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    sizes["initializer_range"] = 0.2
    config = BertConfig(
        vocab_size=len(special) + len(WORDS), max_position_embeddings=64, hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout, **sizes, **changes,
    )  # fmt: skip
    torch.manual_seed(11)
    BertModel(config).save_pretrained(folder)
    return folder


def tagged(count: int, seed: int = 0) -> Iterator[tuple[list[str], list[str]]]:
    """(words, tags in IOB2), of 6 to 23 words; entities begin with one of a class's first two words, and may go on with
    another of its words."""
    draw = random.Random(seed)
    for number in range(count):
        name = list(CLASSES)[number % len(CLASSES)]
        words = draw.choices(FILLING.split(), k=draw.randint(3, 20))
        tags = ["O"] * len(words)
        for length in (1, 2):
            between = [place for place in range(len(words) + 1) if tags[place : place + 1] != [f"I-{name}"]]
            place = draw.choice(between)
            own = CLASSES[name].split()
            words[place:place] = [draw.choice(own[:2]), draw.choice(own[2:])][:length]
            tags[place:place] = [f"B-{name}", f"I-{name}"][:length]
        yield words, tags


def write_tagged(file: Path, count: int = 60, seed: int = 0) -> Path:
    """In CoNLL's form."""
    sentences = ("".join(f"{word} {tag}\n" for word, tag in zip(*each, strict=True)) for each in tagged(count, seed))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(sentences), encoding="utf-8")
    return file


def write_model(folder: Path, encoder: Path, seed: int = 0) -> Path:
    """A model folder, as a run writes it, of that encoder and a head for CLASSES with random weights."""
    import torch

    from ddp_ft.config.loading import make_config
    from ddp_ft.models.build import build_model
    from ddp_ft.models.libraries.registry import get_library
    from ddp_ft.run_folder.model_folder import describe_model, save_model_folder
    from ddp_ft.tasks.registry import restore_task

    built = build_model(f"transformers/{encoder}", len(CLASSES), None, "none")
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in built.module.named_parameters():
            if "classifier" in name:
                parameter.normal_(std=0.5)
    processor = built.processor.configured(make_config().data)
    task = restore_task("single-label", {"classes": list(CLASSES)})
    description = describe_model(built.spec, processor, task, list(CLASSES), "fp32")
    files = {**processor.files(), **get_library("transformers").files(built.spec, list(CLASSES))}
    save_model_folder(folder, built.module.state_dict(), description, files)
    return folder
