"""A tag for each word from end to end: trained on any number of ranks, killed, loaded by transformers, predicted."""

import json
import re

import pytest
import torch

import ddp_ft
from ddp_ft.doctor import doctor
from ddp_ft.errors import UserError
from ddp_ft.export import export
from tests.support.runs import arguments, call_on, column, read, train_here, train_on
from tests.support.texts import tagged, write_classes, write_encoder, write_tagged
from tests.system.faults.forks import train_killed

EPOCHS = 8
pytestmark = pytest.mark.xdist_group("words")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder") / "bert")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    for name, count in (("train", 50), ("test", 11)):
        write_tagged(folder / f"{name}.conll", count, seed=count)
    return folder


def options(data, run, encoder, *more):
    words = [
        "--set",
        "loss.label_smoothing=0",
        "--batch-size",
        4,
        "--lr",
        0.003,
        "--set",
        "eval.every_epochs=2",
        "--set",
        "model.image_size=auto",
    ]
    return [data, run, "--model", f"transformers/{encoder}", "--weights", "pretrained", *words, *more]


@pytest.fixture(scope="module")
def alone(data, encoder, tmp_path_factory):
    """An unbroken run of one process, in which nothing is drawn."""
    run = tmp_path_factory.mktemp("run") / "alone"
    train_on(1, *options(data, run, encoder, "--set", "checkpoint.every_steps=3"), epochs=EPOCHS)
    return run


def test_it_learns(alone):
    """Each word tells its own tag."""
    assert read(alone, "plan.json")["recipe"] == "fine_tune" and read(alone, "plan.json")["task"] == "token-labels"
    assert column(alone, "f1", "val")[-1] > 0.6 and column(alone, "unseen", "val")[-1] == 0


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_same_curve_on_any_number_of_processes(data, encoder, alone, tmp_path, world_size):
    """The loss is the mean over the words of a batch, however they are spread over ranks and micro-batches."""
    train_on(world_size, *options(data, tmp_path / "r", encoder, "--set", "train.micro_batch=1"), epochs=EPOCHS)
    for split in ("train", "val"):
        assert column(tmp_path / "r", "loss", split) == pytest.approx(column(alone, "loss", split), rel=3e-4)
    for name in ("f1", "precision", "recall", "accuracy"):
        assert column(tmp_path / "r", name, "val") == column(alone, name, "val")
    assert read(tmp_path / "r", "summary.json")["test"]["f1"] == read(alone, "summary.json")["test"]["f1"]


def test_a_killed_run_ends_with_the_same_bytes(data, encoder, alone, tmp_path):
    words = options(data, tmp_path / "cut", encoder, "--set", "checkpoint.every_steps=3", "--workers", 1)
    train_killed(arguments(*words, epochs=EPOCHS), tmp_path / "fault", count=5)
    train_on(1, *words, epochs=EPOCHS)
    parts = [run / "best/model.safetensors" for run in (tmp_path / "cut", alone)]
    assert parts[0].read_bytes() == parts[1].read_bytes()


def tags_by_transformers(run, words, folder="best"):
    """The tag of each word by transformers alone, from its first token."""
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    model = AutoModelForTokenClassification.from_pretrained(run / folder).eval()
    given = AutoTokenizer.from_pretrained(run / folder)(words, is_split_into_words=True, return_tensors="pt")
    with torch.no_grad():
        best = model(**given).logits[0].argmax(-1).tolist()
    places = [given.word_ids().index(word) for word in range(len(words))]
    return [model.config.id2label[best[place]] for place in places]


def test_transformers_loads_it_and_says_the_same(alone, tmp_path):
    """In characters of the text, whatever is between the words."""
    sentences = [words for words, _ in tagged(5, seed=77)]
    texts = ["  ".join(words) + "." for words in sentences]
    (tmp_path / "t.jsonl").write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts))
    call_on(2, "ddp_ft.predict", alone, tmp_path / "t.jsonl", "--output", tmp_path / "p.jsonl", "--device", "cpu")
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    for words, text, row in zip(sentences, texts, rows, strict=True):
        tags = tags_by_transformers(alone, [*words, "."])
        begun = [word for word, tag in zip(words, tags, strict=False) if tag.startswith("B-")]
        firsts = [text[each["start"] : each["end"]].split()[0] for each in row["entities"]]
        assert set(begun) <= set(firsts) and all(0 < each["probability"] <= 1 for each in row["entities"])
        assert {each["type"] for each in row["entities"]} == {tag[2:] for tag in tags if tag != "O"}
    call_on(1, "ddp_ft.predict", alone, tmp_path / "t.jsonl", "--output", tmp_path / "p.csv", "--device", "cpu")
    first = rows[0]["entities"][0]
    assert f"{first['start']}-{first['end']} {first['type']}" in (tmp_path / "p.csv").read_text().splitlines()[1]


def test_each_sentence_counts_once(alone, tmp_path):
    file = write_tagged(tmp_path / "t.conll", 101, seed=9)
    said = {call_on(world, "ddp_ft.evaluate", alone, "--data", file, "--split", "all") for world in (1, 2, 3)}
    [found] = map(json.loads, said)
    assert found["samples"] == 101


def test_words_beyond_the_length_are_missed(alone, data, encoder, tmp_path):
    """And said to be: with ten tokens the entities behind them lower the recall, not the precision."""
    train_on(1, *options(data, tmp_path / "r", alone, "--set", "data.max_length=10", "--lr", 1e-9), epochs=1)
    short, whole = (read(run, "summary.json")["test"] for run in (tmp_path / "r", alone))
    counts = [len(words) for words, _ in tagged(11, seed=11)]
    assert short["unseen"] == pytest.approx(sum(max(0, count - 8) for count in counts) / sum(counts))
    assert short["recall"] < 0.75 * whole["recall"] and short["precision"] > 0.75 * whole["precision"]


def test_the_report_has_a_row_for_each_type(alone):
    from ddp_ft.reporting.writing import write_report

    assert write_report(alone)
    page = (alone / "report.html").read_text()
    assert all(f"{name}</" in page for name in ("sea", "wood", "city")) and ">entities</th>" in page
    assert "pipeline_tag: token-classification" in (alone / "model_card.md").read_text()


def places_of(entities):
    return [(each["type"], each["start"], each["end"]) for each in entities]


def test_an_export_finds_the_same_entities(alone, tmp_path):
    """So do `ddp_ft.load` and a CoNLL file, whose sentences have spaces between words."""
    assert export.main(
        [str(alone), "--format", "onnx", "--output", str(tmp_path / "m.onnx")], standalone_mode=False
    ) in (0, None)
    file = write_tagged(tmp_path / "t.conll", 6, seed=3)
    found = []
    for model in (alone, tmp_path / "m.onnx"):
        call_on(1, "ddp_ft.predict", model, file, "--output", tmp_path / "p.jsonl", "--device", "cpu")
        rows = map(json.loads, (tmp_path / "p.jsonl").read_text().splitlines())
        found.append([places_of(row["entities"]) for row in rows])
    model = ddp_ft.load(alone, device="cpu")
    loaded = [places_of(each.entities) for each in model([" ".join(words) for words, _ in tagged(6, seed=3)])]
    assert loaded == found[0] == found[1] and sum(map(len, loaded)) >= 6


def test_an_adapter_on_it(data, encoder, tmp_path):
    said = train_on(1, *options(data, tmp_path / "r", encoder, "--adapter", "lora"), epochs=1)
    assert "lora" in said and (tmp_path / "r/best/adapter").is_dir()
    words = [tmp_path / "r", "--merge", "--format", "safetensors", "--output", tmp_path / "m"]
    assert export.main([*map(str, words)], standalone_mode=False) in (0, None)
    assert len(tags_by_transformers(tmp_path / "m", ["a", "ship"], "")) == 2


def test_doctor_looks_at_sentences(tmp_path, capsys):
    write_tagged(tmp_path / "train.conll", 20, seed=1)
    write_tagged(tmp_path / "test.conll", 8, seed=1)
    assert doctor.main(["--data", str(tmp_path)], standalone_mode=False) == 2
    assert re.search(r"problem +leakage +8 groups of the same texts in ", capsys.readouterr().out)


def test_what_is_refused(alone, data, encoder, shapes, tmp_path):
    def refused(said, source, *more):
        with pytest.raises(UserError, match=said):
            train_here(*options(source, tmp_path / "r", encoder, *more))

    refused("does not fit the task token-labels", data, "--loss", "focal")
    refused("loss.positive_weights does not fit", data, "--set", "loss.positive_weights=balanced")
    refused("does not end with its head", data, "--recipe", "linear_probe")
    refused("is no metric of token-labels", data, "--metric", "mAP")
    refused("--sampling balanced needs classes", data, "--sampling", "balanced")
    with pytest.raises(UserError, match="samples of the kind 'text'"):
        train_here(data, tmp_path / "r")
    with pytest.raises(UserError, match="does not fit the data"):
        train_here(*options(write_classes(tmp_path / "c", 12), tmp_path / "r", encoder, "--task", "token-labels"))
    assert not (tmp_path / "r").exists()
