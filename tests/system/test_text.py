"""Texts from end to end: trained on any number of processes, killed, loaded by transformers alone, predicted."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ddp_ft.config.data import DataConfig
from ddp_ft.config.schema import RunConfig
from ddp_ft.data.sampler import GlobalOrderSampler
from ddp_ft.data.splits.open import open_splits
from ddp_ft.diagnostics import disk, speed
from ddp_ft.doctor import doctor
from ddp_ft.errors import UserError
from ddp_ft.models.build import build_model, create_from_spec
from ddp_ft.models.libraries.transformers import call
from ddp_ft.reporting.writing import write_report
from tests.support.ranks import run_ranks
from tests.support.runs import arguments, call_on, column, read, rows, train_here, train_on
from tests.support.texts import sentences, write_classes, write_encoder, write_lines, write_tagged
from tests.system.docs.test_readme import ROOT, commands_of, run
from tests.system.faults.forks import train_killed

pytestmark = pytest.mark.xdist_group("text")
PAIR = ("text", "text_pair")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder") / "bert")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_classes(tmp_path_factory.mktemp("texts"), 60)


def options(data, run, encoder, *more):
    # Batches so small that there are several windows of a quarter of an epoch, in which texts are sorted by length.
    words = [
        "--batch-size",
        4,
        "--recipe",
        "fine_tune",
        "--lr",
        0.002,
        "--set",
        "eval.every_epochs=2",
        "--set",
        "log.graph=true",
    ]
    return [data, run, "--model", f"transformers/{encoder}", "--weights", "pretrained", *words, *more]


@pytest.fixture(scope="module")
def alone(data, encoder, tmp_path_factory):
    """An unbroken run of one process, in which nothing is drawn."""
    run = tmp_path_factory.mktemp("text") / "alone"
    train_on(1, *without_size(options(data, run, encoder)), epochs=4)
    return run


def without_size(words):
    """`arguments` gives an image size, which texts do not have: the last one given counts."""
    return [*words, "--set", "model.image_size=auto"]


def test_it_learns(alone):
    losses = column(alone, "loss")
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_little_of_the_batches_is_padding(data, encoder, alone, tmp_path):
    """The share that is told is that which follows from the order and the texts' lengths."""
    told = [row["padding_share"] for row in rows(alone) if "padding_share" in row]
    assert len(told) == 4 * 13 - 4 and read(alone, "summary.json")["tokens_per_second"] > 0
    train_on(1, *without_size(options(data, tmp_path / "r", encoder, "--set", "data.bucket_by_length=false")), epochs=4)
    shares = [read(run, "summary.json")["padding_share"] for run in (alone, tmp_path / "r")]
    assert shares == pytest.approx([padding_of(alone, data, grouped) for grouped in (True, False)], abs=1e-6)
    assert 0 < shares[0] < 0.7 * shares[1]


def padding_of(run, data, grouped):
    """The share of padding in the batches that rows tell of, from the fourth to the last but one, by counted words."""
    train = open_splits(DataConfig(path=data), 0, read(run, "split.json")).train
    lengths = np.array([len(train.open(index)["text"].split()) + 2 for index in range(len(train))], np.int32)
    sampler = GlobalOrderSampler(len(train), 4, 1, 0, RunConfig().seed)
    if grouped:
        sampler.group_by_length(lengths)
    batches = [lengths[sampler.global_indices(step).numpy()] for step in range(3, 4 * sampler.steps_per_epoch - 1)]
    return 1 - sum(int(each.sum()) for each in batches) / sum(int(each.max()) * len(each) for each in batches)


def test_what_pads_a_batch_changes_nothing(encoder):
    module = create_from_spec(build_model(f"transformers/{encoder}", 3, weights="none").spec).eval()
    tokens, lengths = torch.tensor([[2, 9, 10, 3, 0, 0], [2, 5, 6, 7, 8, 3]]), torch.tensor([4, 6])
    with torch.no_grad():
        both = call(module, {"tokens": tokens, "tokens_length": lengths})
        one = call(module, {"tokens": tokens[:1, :4], "tokens_length": lengths[:1]})
        unmasked = module(input_ids=tokens).logits
    assert torch.allclose(both[:1], one, atol=1e-6) and not torch.allclose(unmasked[:1], one, atol=1e-2)


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_same_curve_on_any_number_of_processes(data, encoder, alone, tmp_path, world_size):
    """Whatever padding a process's share needs, and with micro-batches too."""
    more = ["--set", "train.micro_batch=2"]
    train_on(world_size, *without_size(options(data, tmp_path / "r", encoder, *more)), epochs=4)
    for split, precision in (("train", 1e-4), ("val", 3e-4)):
        assert column(tmp_path / "r", "loss", split) == pytest.approx(column(alone, "loss", split), rel=precision)
    assert column(tmp_path / "r", "accuracy", "val") == column(alone, "accuracy", "val")
    told, expected = (tokens_of_texts(run) for run in (tmp_path / "r", alone))
    assert told == pytest.approx(expected) and len(expected) == 4 * 13 - 4


def test_texts_are_tokenised_once(data, encoder, alone, tmp_path):
    """Later starts find the tokens; a cache that was deleted comes again."""
    words = without_size(options(data, tmp_path / "r", encoder))
    assert "Prepared 60 texts" in train_on(1, *words, epochs=1)
    assert "Prepared" not in train_on(2, *words, "--extend", epochs=2)
    shutil.rmtree(tmp_path / "r/cache")
    assert "Prepared 60 texts" in train_on(1, *words, "--extend", epochs=3)


def test_another_tokenizer_is_refused_at_a_later_start(data, tmp_path):
    encoder = write_encoder(tmp_path / "bert")
    words = without_size(options(data, tmp_path / "r", encoder))
    train_on(1, *words, epochs=1)
    tokenizer = (encoder / "tokenizer.json").read_text()
    (encoder / "tokenizer.json").write_text(tokenizer.replace('"wave"', '"evaw"'))
    with pytest.raises(UserError, match="tokenizer is another one"):
        train_on(1, *words, "--extend", epochs=2)


def test_where_tokens_cannot_be_kept_the_curve_is_the_same(data, encoder, alone, tmp_path):
    (tmp_path / "r/cache").mkdir(parents=True)
    (tmp_path / "r/cache/packed").write_text("in the way")
    said = train_on(2, *without_size(options(data, tmp_path / "r", encoder)), epochs=4)
    assert "cannot be written to (" in said
    assert column(tmp_path / "r", "loss") == pytest.approx(column(alone, "loss"), rel=1e-4)


def tokens_of_texts(run):
    """How many tokens a text of each step has on average, over all processes, whatever time the step took."""
    return [row["tokens_per_second"] / row["images_per_second"] for row in rows(run) if "tokens_per_second" in row]


def test_a_killed_run_ends_with_the_same_bytes(data, encoder, alone, tmp_path):
    words = without_size(options(data, tmp_path / "cut", encoder, "--set", "checkpoint.every_steps=3", "--workers", 1))
    train_killed(arguments(*words, epochs=4), tmp_path / "fault", count=2)
    train_on(1, *words, epochs=4)
    parts = [run / "best/model.safetensors" for run in (tmp_path / "cut", alone)]
    assert parts[0].read_bytes() == parts[1].read_bytes()


def shares(run, *texts):
    """The share of the last class for each text or pair, by transformers alone."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(run / "best").eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "best")
    assert list(model.config.id2label.values()) == read(run, "classes.json")
    with torch.no_grad():
        return model(**tokenizer(*texts, return_tensors="pt", padding=True)).logits.softmax(-1)[:, -1].tolist()


def answers(table):
    """The same in a table of predictions, whose last columns are the classes'."""
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    names = [name for name in rows[0] if name.startswith("prob_")]
    return [float(row[names[-1]]) for row in rows]


def test_transformers_loads_it_and_says_the_same(alone, tmp_path):
    texts = [text for _, text in sentences(7, seed=5)]
    (tmp_path / "t.jsonl").write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts))
    call_on(2, "ddp_ft.predict", alone, tmp_path / "t.jsonl", "--output", tmp_path / "p.csv", "--device", "cpu")
    assert answers(tmp_path / "p.csv") == pytest.approx(shares(alone, texts), abs=1e-5)
    files = [row.split(",")[0] for row in (tmp_path / "p.csv").read_text().splitlines()[1:]]
    assert files == [f"{tmp_path}/t.jsonl:{number}" for number in range(1, 8)]


def test_each_text_counts_once(alone, tmp_path):
    lines = write_lines(tmp_path / "t.jsonl", 101, seed=9)
    said = {call_on(world, "ddp_ft.evaluate", alone, "--data", lines, "--split", "all") for world in (1, 2, 3)}
    [found] = map(json.loads, said)
    assert found["samples"] == 101


def test_pairs_of_texts(encoder, tmp_path):
    """Whether the second text is of the first one's class; only the model of both can know."""
    texts = list(sentences(48, seed=2))
    rows = [
        {"text": first, "text_pair": second, "label": "same" if one == other else "other"}
        for (one, first), (other, second) in zip(texts, [*texts[3:24], *texts[2:29]], strict=True)
    ]
    (tmp_path / "t.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    words = options(tmp_path / "t.jsonl", tmp_path / "r", encoder, "--set", "data.text_pair=text_pair")
    train_on(1, *without_size(words), epochs=1)
    call_on(1, "ddp_ft.predict", tmp_path / "r", tmp_path / "t.jsonl", "--output", tmp_path / "p.csv")
    told, own = answers(tmp_path / "p.csv"), shares(tmp_path / "r", *([row[name] for row in rows] for name in PAIR))
    assert told == pytest.approx(own, abs=1e-5) and len(told) == 48


def test_an_average_is_a_model_of_transformers_too(alone, tmp_path):
    call_on(1, "ddp_ft.cli.average", alone, "--last", 2, "--output", tmp_path / "r/best", "--device", "cpu")
    (tmp_path / "r/classes.json").write_text((alone / "classes.json").read_text())
    assert len(shares(tmp_path / "r", ["a ship", "an owl near the moss"])) == 2


def test_another_run_starts_from_it(alone, data, tmp_path):
    said = train_on(1, *without_size(options(data, tmp_path / "r", alone)), epochs=1)
    assert "0 skipped" in said and "0 missing" in said
    assert column(tmp_path / "r", "loss")[0] < column(alone, "loss")[0]


def test_its_report_and_card_are_of_texts(alone):
    assert write_report(alone)
    page, card = (alone / "report.html").read_text(), (alone / "model_card.md").read_text()
    assert "validation texts" in page and not re.search(r"[ >]images\b", re.sub("(?s)<style.*?</style>", "", page))
    assert "pipeline_tag: text-classification" in card and "library_name: transformers" in card
    assert "From a text it" in card and "| set | texts |" in card


def test_what_is_refused(alone, data, encoder, shapes, tmp_path):
    def refused(said, folder, source=data, *more, size=()):
        with pytest.raises(UserError, match=said):
            train_here(*options(source, tmp_path / "r", folder, *(size or ("--set", "model.image_size=auto")), *more))

    changed = tmp_path / "changed"

    def encoder_with(**values):
        write_encoder(changed)
        config = json.loads((changed / "config.json").read_text())
        (changed / "config.json").write_text(json.dumps({**config, **values}))
        return changed

    refused("code of the folder is never run", encoder_with(auto_map={"AutoModel": "own.Model"}))
    refused("attn_implementation", encoder_with(text_config={"attn_implementation": "someone/kernels"}))
    refused("attn_implementation", encoder_with(attn_implementation="someone/kernels"))
    refused("no model that the installed transformers knows", encoder_with(model_type="nothing"))
    refused("its tokenizer has [0-9]+ tokens, the model 7", encoder_with(vocab_size=7))
    write_encoder(changed)
    (changed / "model.safetensors").rename(changed / "pytorch_model.bin")
    refused("a pickle, which is not opened", changed)
    (changed / "tokenizer.json").write_text("{}")
    refused("no tokenizer that can be read", changed)
    refused("is for images", encoder, data, size=("--image-size", "32"))
    refused("samples of the kind 'image'", encoder, shapes)
    refused("augment.mixup: this is for images", encoder, data, "--mixup", 0.2)
    refused("flip is for images", encoder, data, "--set", "eval.tta=flip")
    with pytest.raises(UserError, match=f"--model transformers/{encoder}"):
        train_here(data, tmp_path / "r", "--model", encoder)
    assert not (tmp_path / "r").exists()


def test_a_model_json_of_others_runs_no_code(alone):
    spec = read(alone, "best/model.json")
    assert create_from_spec(spec).config.model_type == "bert"
    spec["arguments"]["config"]["auto_map"] = {"AutoModel": "own.Model"}
    with pytest.raises(UserError, match="arguments that no model needs: 'config'"):
        create_from_spec(spec)


def test_without_the_library(data, encoder, tmp_path):
    [said] = run_ranks(1, start_without_transformers, str(data), str(encoder), str(tmp_path / "r"), connected=False)
    assert "pip install 'ddp_ft[text]'" in said


def start_without_transformers(data, encoder, run):
    import sys

    sys.modules["transformers"] = None  # what Python takes for a library that is not there
    try:
        train_here(*without_size(options(data, run, encoder)))
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_commands_and_the_program_of_the_guide_run(data, encoder, tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs/text.md").read_text(encoding="utf-8")
    for role in ("train", "val", "test"):
        (tmp_path / "reviews").mkdir(exist_ok=True)
        (tmp_path / "reviews" / role).symlink_to(data)
    (tmp_path / "minilm").symlink_to(encoder)
    write_lines(tmp_path / "reviews.jsonl", 40)
    rows = "".join(f"{text},{text[::-1]},{name}\n" for name, text in sentences(40))
    (tmp_path / "questions.csv").write_text(f"question,answer,topic\n{rows}")
    write_tagged(tmp_path / "entities/train.conll", 40)
    for command in commands_of(page):
        if not command.startswith("pip install"):
            smaller = command.replace("~/reviews", "reviews").replace(" --model", " --epochs 1 --batch-size 8 --model")
            done = run(smaller, tmp_path)
            assert done.returncode == 0, (command, done.stdout, done.stderr)
    monkeypatch.chdir(tmp_path)
    programs = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    for program in programs:
        exec(program, {})
        assert capsys.readouterr().out.strip() in ("sea", "wood", "city")
    assert len(programs) == 2


def test_the_doctor_reads_them(data, encoder, tmp_path, monkeypatch, capsys):
    for name, seconds in (("LOADING_SECONDS", 0.1), ("STEP_SECONDS", 0.2)):
        monkeypatch.setattr(speed, name, seconds)
    monkeypatch.setattr(disk, "PROBE_SECONDS", 0.1)
    for role in ("train", "val"):
        (tmp_path / "d" / role).mkdir(parents=True)
        for name in ("sea", "wood"):
            (tmp_path / "d" / role / name).symlink_to(data / name)
    words = [
        "--data",
        tmp_path / "d",
        "--model",
        f"transformers/{encoder}",
        "--device",
        "cpu",
        "--run-dir",
        tmp_path / "r",
    ]
    code = doctor.main([*map(str, words), "--set", "data.max_length=9"], standalone_mode=False)
    said = capsys.readouterr().out
    assert code == 2 and not re.search(r"(?<!decode )\bimage", said)
    assert re.search(r"problem +leakage +40 groups of the same texts in train and val", said)
    assert re.search(r"warning +cut texts +[0-9.]+ % of the texts are longer than 9 tokens", said)
    assert re.search(r"ok +loading +[0-9,]+ texts/s", said)


def test_its_report_shows_the_mistakes_as_texts(data, encoder, tmp_path):
    """Of a model that has hardly learned, on data with a text that would like to be more than a text."""
    rows = [{"text": f"<script>alert(1)</script> {text}", "label": name} for name, text in sentences(40)]
    (tmp_path / "t.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    more = ["--set", "log.report=true"]
    said = train_on(1, *without_size(options(tmp_path / "t.jsonl", tmp_path / "r", encoder, *more)), epochs=1)
    assert "could not be written" not in said
    page = (tmp_path / "r/report.html").read_text()
    assert "<script" not in page and "&lt;" in page and "cannot be shown" not in page
    assert re.search(r'<figure class="text"><p><bdi>.*<mark class="(for|against)" style="--share:[01]\.[0-9]+">', page)
    assert "Texts per second" in page and "Images" not in page
    assert "orange" in page and '<table class="matrix">' in page and "Per-class metrics" in page


def test_tensorboard_shows_texts_as_the_model_sees_them(data, encoder, tmp_path):
    words = options(data, tmp_path / "r", encoder, "--set", "log.pictures=true")
    train_on(1, *without_size(words), epochs=1)
    events = EventAccumulator(str(tmp_path / "r/tensorboard"), size_guidance={"tensors": 0}).Reload()
    texts = {tag.removesuffix("/text_summary") for tag in events.Tags()["tensors"] if tag.startswith("8_texts/")}
    assert {"8_texts/1_first_batch", "8_texts/5_worst_mistakes"} <= texts
    [first] = events.Tensors("8_texts/1_first_batch/text_summary")
    shown = first.tensor_proto.string_val[0].decode()
    assert shown.count("\\[CLS\\]") == shown.count("\\[SEP\\]") in (3, 4) and "\\[PAD" not in shown
    assert re.search(r"^\*\*(sea|wood|city)\*\*$", shown, flags=re.MULTILINE)
    worst = events.Tensors("8_texts/5_worst_mistakes/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "true: " in worst and "\\[CLS\\]" in worst
