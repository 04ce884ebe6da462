"""Words with a tag each, from CoNLL files, folders of them, and lists in tables."""

import json

import pytest

from ddp_ft.config.data import DataConfig
from ddp_ft.data.cells import OF_LIST
from ddp_ft.data.splits.open import open_splits
from ddp_ft.errors import UserError
from tests.support.texts import tagged, write_tagged


def words_of(source):
    return [source.open(index)["words"] for index in range(len(source))]


def tags_of(splits, source):
    return [[splits.schema.names[tag] for tag in each] for each in source.targets]


def test_a_file_is_divided(tmp_path):
    splits = open_splits(DataConfig(path=write_tagged(tmp_path / "t.conll", 60)), 0)
    assert (splits.schema.kind, splits.schema.names[0], len(splits.schema.names)) == ("tags", "O", 7)
    assert len(splits.train) + len(splits.val) == 60 and 6 <= len(splits.val) <= 12
    found = [*zip(words_of(splits.train), tags_of(splits, splits.train), strict=True)]
    assert all(each in list(tagged(60)) for each in found)
    read = splits.train.read(0)
    assert bytes(read["words"].numpy()).decode().split(OF_LIST) == words_of(splits.train)[0]
    assert int(read["target_length"]) == len(read["target"]) == len(words_of(splits.train)[0])


@pytest.mark.parametrize("names", [("a.train", "a.dev", "a.test"), ("train.iob2", "valid.iob2", "test.iob2")])
def test_a_folder_has_parts(tmp_path, names):
    for seed, name in enumerate(names):
        write_tagged(tmp_path / name, 9 + seed, seed)
    (tmp_path / "README").write_text("Nothing is tagged here.")
    splits = open_splits(DataConfig(path=tmp_path), 0)
    assert [len(each) for each in (splits.train, splits.val, splits.test)] == [9, 10, 11]
    assert words_of(splits.test) == [words for words, _ in tagged(11, 2)]


def test_other_columns_documents_and_marks(tmp_path):
    text = "\ufeff-DOCSTART- -X- O O\r\n\r\nA DT O\r\ntram NN B-city\r\n \r\n\r\n-DOCSTART- O\r\nmoss NN I-wood"
    (tmp_path / "t.conll").write_text(text, encoding="utf-8", newline="")
    write_tagged(tmp_path / "more.conll", 12)
    whole = (tmp_path / "t.conll").read_text(encoding="utf-8") + "\n\n" + (tmp_path / "more.conll").read_text()
    (tmp_path / "t.conll").write_text(whole, encoding="utf-8")
    splits = open_splits(DataConfig(path=tmp_path / "t.conll"), 0)
    assert {("A", "tram"), ("moss",)} <= {tuple(each) for each in (*words_of(splits.train), *words_of(splits.val))}
    assert len(splits.train) + len(splits.val) == 14


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a O\nb\nc O\n", "1 lines hold no word with its tag"),
        (b"a O\nb NN\n", "line 2: 'b NN'"),
        (b"\n\n", "is empty"),
        ("größe O\n".encode("latin-1"), "not UTF-8: byte 0xF6 in line 1"),
        ("a O\n".encode("utf-16"), "it is UTF-16"),
    ],
)
def test_files_that_are_no_such(tmp_path, content, said):
    (tmp_path / "t.conll").write_bytes(content)
    with pytest.raises(UserError) as caught:
        open_splits(DataConfig(path=tmp_path / "t.conll"), 0)
    assert said in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize(("words", "target"), [("tokens", "tags"), ("tokens", "ner_tags"), ("parts", "other")])
def test_lists_in_json_lines(tmp_path, words, target):
    rows = [{words: [*given, ";"], target: [*tags, "O"]} for given, tags in tagged(30)]
    (tmp_path / "t.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    more = {"words": words, "target": target} if target == "other" else {}
    splits = open_splits(DataConfig(path=tmp_path / "t.jsonl", **more), 0)
    assert all(words[-1] == ";" for words in words_of(splits.train)) and splits.schema.kind == "tags"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "another number of tags than of words"),
        ({"tokens": ["a"], "tags": ["NOUN"]}, "has tags NOUN"),
        ({"tokens": ["a"], "tags": [3]}, "has tags 3"),
    ],
)
def test_lists_that_do_not_fit(tmp_path, row, said):
    rows = [{"tokens": words, "tags": tags} for words, tags in tagged(12)]
    (tmp_path / "t.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in [*rows, row]))
    with pytest.raises(UserError, match=said):
        open_splits(DataConfig(path=tmp_path / "t.jsonl"), 0)


def test_what_does_not_go_together(tmp_path):
    data = write_tagged(tmp_path / "t.conll", 12)
    for task, said in (("single-label", "has lists of words"), ("regression", "has lists of words")):
        with pytest.raises(UserError, match=said):
            open_splits(DataConfig(path=data), 0, task=task)
    (tmp_path / "t.csv").write_text("text,label\n" + "a b,O\n" * 10)
    with pytest.raises(UserError, match="has no column of words"):
        open_splits(DataConfig(path=tmp_path / "t.csv"), 0, task="token-labels")
    several = tmp_path / "several"
    for name in ("train.conll", "train2.conll"):
        write_tagged(several / name, 6)
    with pytest.raises(UserError, match="several files for train"):
        open_splits(DataConfig(path=several), 0)


def test_a_part_that_is_not_tagged_is_not_left_out(tmp_path):
    write_tagged(tmp_path / "train.txt", 12)
    for name, content in (("dev.txt", "# made by hand\na O\n"), ("test.conll", ""), ("held_out.conll", "a O\n")):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=r"are no tagged words, or of no part: |is empty|several"):
            open_splits(DataConfig(path=tmp_path), 0)
        (tmp_path / name).unlink()


def test_tabs_alone_are_between_columns_where_there_are_any(tmp_path):
    rows = "New\u00a0York\tB-LOC\nis\tO\n\n"
    (tmp_path / "t.conll").write_text(rows * 12, encoding="utf-8")
    splits = open_splits(DataConfig(path=tmp_path / "t.conll"), 0)
    assert words_of(splits.train)[0] == ["New\u00a0York", "is"]


def test_words_that_are_asked_for_go_before_texts(tmp_path):
    rows = [{"text": " ".join(words), "tokens": words, "tags": tags} for words, tags in tagged(20)]
    (tmp_path / "t.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    splits = open_splits(DataConfig(path=tmp_path / "t.jsonl", words="tokens", target="tags"), 0)
    assert splits.schema.kind == "tags"
