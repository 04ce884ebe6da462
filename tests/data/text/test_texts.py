"""Texts of files, tables, JSON lines and arguments; their tokens."""

import io
import json

import numpy as np
import pytest

from ddp_ft.config.data import DataConfig
from ddp_ft.contracts import BadSample
from ddp_ft.data.sources.file_kinds import TEXTS
from ddp_ft.data.sources.text_inputs import open_inputs
from ddp_ft.data.splits.open import open_splits
from ddp_ft.data.text.processor import TextProcessor
from ddp_ft.data.text.read import read_text
from ddp_ft.data.text.source import name_of
from ddp_ft.errors import UserError
from tests.support.texts import CLASSES, write_classes, write_encoder, write_lines


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder") / "bert")


@pytest.fixture(scope="module")
def processor(encoder):
    import torch

    from ddp_ft.models.libraries.transformers import processor as of

    return of(str(encoder), torch.nn.Identity(), None, "none")


def write_rows(file, rows):
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a wave", "a wave"),
        (b"\xef\xbb\xbfa wave", "a wave"),
        ("a größe 波\n".encode(), "a größe 波\n"),
        (b"one\r\ntwo\rthree\n", "one\ntwo\nthree\n"),
        (b"", ""),
        (b"nul \0 inside", "nul \0 inside"),
    ],
)
def test_a_file_is_a_text(tmp_path, content, expected):
    (tmp_path / "t.txt").write_bytes(content)
    assert read_text(str(tmp_path / "t.txt")) == expected


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("größe".encode("latin-1"), "not UTF-8: byte 0xF6 in line 1"),
        (b"good\ngood\n\xff", "byte 0xFF in line 3"),
        ("a wave".encode("utf-16"), "UTF-16"),
        ("a wave".encode("utf-32"), "UTF-32"),
    ],
)
def test_other_encodings_are_named(tmp_path, content, said):
    (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(BadSample, match=said):
        read_text(str(tmp_path / "t.txt"))


def test_folders_of_texts(tmp_path):
    splits = open_splits(DataConfig(path=write_classes(tmp_path / "d", 30), val_split=0.2), 0)
    assert splits.train.kind == TEXTS.name and splits.schema.names == tuple(sorted(CLASSES))
    assert len(splits.train) + len(splits.val) == 30
    opened = splits.train.open(0)
    assert opened["text"] == read_text(splits.train.name(0)) and int(opened["target"]) == splits.train.targets[0]
    read = splits.train.read(0)
    assert bytes(read["text"].numpy()).decode() == opened["text"] and int(read["text_length"]) == len(read["text"])


def test_descriptions_beside_images_are_not_the_data(shapes, tmp_path):
    for folder in (shapes / "val").iterdir():
        (tmp_path / folder.name).mkdir()
        for file in folder.iterdir():
            (tmp_path / folder.name / file.name).symlink_to(file)
            (tmp_path / folder.name / f"{file.stem}.txt").write_text("a disc")
    splits = open_splits(DataConfig(path=tmp_path), 0)
    assert splits.train.kind == "image" and any(".txt 12" in note for note in splits.notes)
    for image in (tmp_path / "disc").glob("*.png"):
        image.unlink()
    with pytest.raises(UserError, match=r"Class folders without images in .*: disc"):
        open_splits(DataConfig(path=tmp_path), 0)
    for image in (tmp_path / "square").glob("*.png"):
        image.unlink()
    with pytest.raises(UserError, match=r"Class folders without images in .*: disc, square"):
        open_splits(DataConfig(path=tmp_path), 0)


def test_tables_and_lines_say_the_same(tmp_path):
    lines = write_lines(tmp_path / "t.jsonl", 30)
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    quoted = "".join(f'"{row["text"]}",{row["label"]}\n' for row in rows)
    (tmp_path / "t.csv").write_text(f"text,label\n{quoted}")
    found = [open_splits(DataConfig(path=tmp_path / name), 3) for name in ("t.jsonl", "t.csv")]
    assert found[0].fingerprint == found[1].fingerprint and found[0].record == found[1].record
    assert [found[0].val.open(k)["text"] for k in range(3)] == [found[1].val.open(k)["text"] for k in range(3)]


def test_other_columns(tmp_path):
    file = tmp_path / "t.jsonl"
    file.write_text(
        "".join(json.dumps({"a": f"one {k}", "b": f"two {k}", "y": k % 2, "image": "x"}) + "\n" for k in range(20))
    )
    splits = open_splits(DataConfig(path=file, text="a", text_pair="b", target="y"), 0)
    sample = splits.train.open(0)
    assert sample["text"].startswith("one") and sample["text_pair"] == sample["text"].replace("one", "two")
    with pytest.raises(UserError, match=r"no column 'c' \(data.text_pair\)"):
        open_splits(DataConfig(path=file, text="a", text_pair="c", target="y"), 0)


def test_equal_texts_stay_on_one_side(tmp_path):
    file = tmp_path / "t.jsonl"
    file.write_text(
        "".join(json.dumps({"text": f"text {k // 4}", "label": "ab"[k // 4 % 2]}) + "\n" for k in range(80))
    )
    splits = open_splits(DataConfig(path=file, val_split=0.3), 0)
    sides = [{side.open(k)["text"] for k in range(len(side))} for side in (splits.train, splits.val)]
    assert sides[0].isdisjoint(sides[1]) and len(sides[0] | sides[1]) == 20
    assert any("a text of an earlier row" in note for note in splits.notes)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"text": "a", "label": "x"}\nno json\n', "line 2 is no JSON object"),
        ('{"text": "a", "label": "x"}\n[1]\n', "line 2 is no JSON object: it holds a list"),
        ('{"text": "a", "label": {"of": 1}}\n', "line 1: 'label' holds"),
        ("\n\n", "is empty"),
        (b'{"text": "\xff", "label": "x"}\n', "line 1 is no JSON object"),
    ],
)
def test_lines_that_are_no_objects(tmp_path, content, said):
    (tmp_path / "t.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=said):
        open_splits(DataConfig(path=tmp_path / "t.jsonl"), 0)


def test_several_labels_in_a_list(tmp_path):
    file = tmp_path / "t.jsonl"
    labels = [["a", "b;c"][: k % 3] for k in range(30)]
    write_rows(file, [{"text": f"t {k}", "label": each} for k, each in enumerate(labels)])
    assert open_splits(DataConfig(path=file), 0).schema.names == ("a", "b", "c")
    assert open_splits(DataConfig(path=file, separator="|"), 0, task="multi-label").schema.names == ("a", "b;c")


def test_lists_in_parquet(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    labels = [["a", "b"][: k % 3] for k in range(30)]
    pq.write_table(pa.table({"text": [f"t {k}" for k in range(30)], "label": labels}), tmp_path / "t.parquet")
    splits = open_splits(DataConfig(path=tmp_path / "t.parquet"), 0)
    assert splits.schema.names == ("a", "b") and splits.train.targets.shape[1] == 2


def test_what_predict_takes(tmp_path):
    folder, lines = write_classes(tmp_path / "d", 6), write_lines(tmp_path / "t.jsonl", 3)
    file = next((folder / "sea").iterdir())
    inputs = open_inputs([str(folder), "a ship", str(file), str(lines), "-"], None, io.StringIO("one line\r\n\n"))
    texts = [inputs.open(k)["text"] for k in range(len(inputs))]
    assert texts[6:8] == ["a ship", file.read_text()] and texts[-2:] == ["one line", ""]
    assert inputs.name(8) == f"{lines}:1" and inputs.name(12) == "-:2" and len(inputs) == 13
    for given, said in (
        (["nowhere.txt"], "No such file"),
        ([str(lines), "--column"], "No such"),
        (["-", "-"], "twice"),
    ):
        with pytest.raises(UserError, match=said):
            open_inputs(given, None, io.StringIO("x"))
    with pytest.raises(UserError, match="no column 'body'"):
        open_inputs([str(lines)], "body")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="no texts in"):
        open_inputs([str(tmp_path / "none")], None)


def test_tokens_are_the_tokenizers_own(encoder, processor):
    from transformers import AutoTokenizer

    own, transform = AutoTokenizer.from_pretrained(encoder), processor.configured(DataConfig()).eval_transform()
    for text, pair in (
        ("a ship of old oak", None),
        ("", None),
        ("a tram", "the moss , unknown"),
        ("wave " * 200, None),
    ):
        sample = {"text": text} if pair is None else {"text": text, "text_pair": pair}
        found = transform(sample)
        wanted = own(text, pair, truncation=True, max_length=64)
        assert found["tokens"].tolist() == wanted["input_ids"]
        if pair is not None:
            assert int(found["second"]) == wanted["token_type_ids"].index(1)


def test_a_giant_text_costs_no_more_than_others(processor):
    transform = processor.configured(DataConfig(max_length=16)).eval_transform()
    whole = "a wave of salt near the harbour " * 400_000  # 13 MB
    assert transform({"text": whole})["tokens"].tolist() == transform({"text": whole[:4000]})["tokens"].tolist()


def test_length(processor):
    assert processor.limit == 64 and processor.configured(DataConfig()).length == 64
    assert processor.configured(DataConfig(max_length=10)).length == 10
    with pytest.raises(UserError, match="takes 64 tokens"):
        processor.configured(DataConfig(max_length=65))


def test_a_processor_comes_back_from_its_files(processor):
    described, files = json.loads(json.dumps(processor.to_mapping())), processor.files()
    assert TextProcessor.from_mapping(described, files.__getitem__) == processor
    other = {**files, "tokenizer.json": files["tokenizer.json"].replace(b"wave", b"wove")}
    with pytest.raises(UserError, match="not the one that the model was trained with"):
        TextProcessor.from_mapping(described, other.__getitem__)


def test_padding_is_the_tokenizers(processor):
    from dataclasses import replace

    import torch

    padded = replace(processor, padding=3).on_device(torch.device("cpu"), False)(processor.example(2))
    assert padded["tokens"][1, -1] == 3 and np.array_equal(padded["tokens_length"], [16, 15])


def test_names_tell_texts_apart():
    assert name_of(("a",)) != name_of(("a", "")) != name_of(("", "a"))
    assert name_of(("the \n same",)) == name_of(("the \n same",)) and name_of(("the \n same",)).endswith("the same")
