"""Exported models of texts: what other programs find in the files, and that they say what the model says."""

import csv
import json
import shutil

import onnxruntime
import pytest
import torch

from ddp_ft.errors import UserError
from ddp_ft.export import export as command
from ddp_ft.exporters import text_model
from ddp_ft.inference.exported import open_exported
from ddp_ft.predict import predict
from tests.support.texts import sentences, write_encoder, write_lines, write_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    return write_model(folder / "m", write_encoder(folder / "bert"))


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    made = tmp_path_factory.mktemp("onnx") / "m.onnx"
    assert export(model, "--format", "onnx", "--output", made) == 0
    return made


def export(*args):
    return command.main([str(arg) for arg in args], standalone_mode=False)


def by_transformers(folder, *texts):
    """Names of inputs and their arrays, and the logits of these texts, or pairs, in one batch."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    module = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    given = AutoTokenizer.from_pretrained(folder)(*texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        return {name: tensor.numpy() for name, tensor in given.items()}, module(**given).logits


@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_file_takes_what_transformers_tokenizer_returns(model, file, count):
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_inputs()] == ["input_ids", "attention_mask", "token_type_ids"]
    assert all(each.shape == ["batch", "tokens"] for each in session.get_inputs())
    texts = [text for _, text in sentences(count, seed=count)]
    for given in ([texts], [["oak"] * count], [[" ".join(["oak"] * 62)] * count], [texts, texts[::-1]]):
        inputs, logits = by_transformers(model, *given)
        [found] = session.run(["outputs"], inputs)
        torch.testing.assert_close(torch.from_numpy(found), logits, atol=1e-5, rtol=1e-4)


def test_what_is_in_it(model, file):
    _, told = open_exported(file, CPU)
    assert told["classes"] == ["sea", "wood", "city"] and told["preprocessing"]["kind"] == "text"
    assert told["files"]["tokenizer.json"].encode() == (model / "tokenizer.json").read_bytes()
    assert b".py" not in file.read_bytes()


@pytest.mark.parametrize("kind, name", [("onnx", "m.onnx"), ("torch_export", "m.pt2"), ("safetensors", "m")])
def test_predict_takes_each_and_says_the_same(kind, name, model, file, tmp_path, capsys):
    output = file if kind == "onnx" else tmp_path / name
    if kind != "onnx":
        assert export(model, "--format", kind, "--output", output, "--check", 5) == 0
        assert "7 of 7 the same" in capsys.readouterr().out  # the longest and the shortest, too
    lines = write_lines(tmp_path / "t.jsonl", 9, seed=4)
    both = zip(sentences(4), sentences(4, 1), strict=True)
    rows = [{"text": one, "text_pair": other} for (_, one), (_, other) in both]
    (tmp_path / "pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for number, each in enumerate((model, output)):
        words = [each, lines, tmp_path / "pairs.jsonl", "--output", tmp_path / f"{number}.csv", "--device", "cpu"]
        predict.main([str(word) for word in words], standalone_mode=False)
    one, two = (list(csv.DictReader((tmp_path / f"{number}.csv").read_text().splitlines())) for number in range(2))
    assert len(one) == 13
    for ours, theirs in zip(one, two, strict=True):
        for column in ours:
            told = (ours[column], theirs[column])
            assert told[0] == told[1] or float(told[0]) == pytest.approx(float(told[1]), abs=1e-5)


def test_compared_on_given_texts(model, tmp_path, capsys):
    lines = write_lines(tmp_path / "t.jsonl", 6)
    assert export(model, "--format", "torch_export", "--output", tmp_path / "m.pt2", "--check-images", lines) == 0
    assert f"8 texts of {lines}" in capsys.readouterr().out


def test_an_export_that_ignores_the_mask_is_removed(model, tmp_path, monkeypatch, capsys):
    def forward(self, *given):
        return self.module(input_ids=given[0], attention_mask=0 * given[1] + 1).logits

    monkeypatch.setattr(text_model.LogitsAlone, "forward", forward)
    assert export(model, "--format", "torch_export", "--output", tmp_path / "m.pt2") == 1
    assert "it was removed" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_what_texts_do_not_have(model, tmp_path):
    with pytest.raises(UserError, match="--with-preprocessing is for images"):
        export(model, "--format", "onnx", "--output", tmp_path / "m.onnx", "--with-preprocessing")
    with pytest.raises(UserError, match="of no use without its tokenizer"):
        export(model, "--format", "safetensors", "--output", tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


def test_weights_of_a_run_in_bf16_are_compared_in_fp32(model, tmp_path):
    """What is loaded again computes in bf16 otherwise, which is further off than an export may be."""
    shutil.copytree(model, tmp_path / "m")
    description = json.loads((tmp_path / "m/model.json").read_text())
    (tmp_path / "m/model.json").write_text(json.dumps({**description, "precision": "bf16"}))
    assert export(tmp_path / "m", "--format", "safetensors", "--output", tmp_path / "e") == 0
    assert json.loads((tmp_path / "e/model.json").read_text())["precision"] == "bf16"
