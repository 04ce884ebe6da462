"""`ddp_ft.load` of models of texts: the numbers of `predict`, and of transformers alone."""

import csv
import json

import pytest
import torch

import ddp_ft
from ddp_ft.errors import UserError
from ddp_ft.predict import predict
from tests.support.texts import sentences, write_encoder, write_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("text")
    return write_model(made / "m", write_encoder(made / "bert"))


@pytest.fixture(scope="module")
def model(folder):
    return ddp_ft.load(folder, device="cpu")


def test_the_numbers_are_those_of_predict(model, folder, tmp_path):
    texts = [text for _, text in sentences(70, seed=3)]
    (tmp_path / "t.jsonl").write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts))
    words = [folder, tmp_path / "t.jsonl", "--output", tmp_path / "p.csv", "--device", "cpu"]
    predict.main([str(word) for word in words], standalone_mode=False)
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    found = model(texts)
    assert len(found) == len(rows) == 70
    for row, prediction in zip(rows, found, strict=True):
        assert prediction.label == row["class"] and prediction.labels == (row["class"],)
        for name in model.classes:
            assert prediction.probabilities[name] == pytest.approx(float(row[f"prob_{name}"]), abs=1e-6)


def test_a_text_a_list_and_a_file_are_the_same(model, tmp_path):
    (tmp_path / "a.txt").write_text("an owl near the moss\n")
    one = model("an owl near the moss")
    assert [one] == model(["an owl near the moss"]) == model([tmp_path / "a.txt"])
    assert model(tmp_path / "a.txt") == one and model([]) == []


def test_a_tuple_is_a_pair(model, folder):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    module = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        given = AutoTokenizer.from_pretrained(folder)("an old oak", "a ship", return_tensors="pt")
        wanted = module(**given).logits.softmax(-1)[0].tolist()
    assert list(model(("an old oak", "a ship")).probabilities.values()) == pytest.approx(wanted, abs=1e-6)
    other, both = model(["an old oak a ship", ("an old oak", "a ship")])
    assert list(both.probabilities.values()) == pytest.approx(wanted, abs=1e-6)
    assert other.probabilities == pytest.approx(model("an old oak a ship").probabilities, abs=1e-6)
    assert other.probabilities["sea"] != pytest.approx(both.probabilities["sea"], abs=1e-3)


def test_its_parts_work_alone(model):
    with torch.no_grad():
        logits = model.module(**model.preprocess(("an old oak", "a ship"))).logits
    share = float(logits.softmax(-1)[0, model.classes.index("sea")])
    assert share == pytest.approx(model(("an old oak", "a ship")).probabilities["sea"], abs=1e-6)


def test_what_is_no_text(model, tmp_path):
    with pytest.raises(UserError, match="A int is no text"):
        model([3])
    with pytest.raises(UserError, match="A tuple is no text"):
        model(("a", "b", "c"))
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match="not UTF-8"):
        model(tmp_path / "a.txt")
