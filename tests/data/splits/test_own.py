"""A data set of the user's own, --data FILE.py:NAME: targets of all kinds, splits, what is refused, and runs on it."""

import json
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from ddp_ft.config.data import DataConfig
from ddp_ft.contracts import LABEL, LABELS, NUMBERS, BadSample, Schema
from ddp_ft.data.image.channels import with_channels
from ddp_ft.data.splits.open import open_part, open_splits
from ddp_ft.errors import UserError
from tests.support.runs import column, train_here, train_on

CODE = """
import random
from pathlib import Path
import numpy as np
import torch
from PIL import Image
{more}
def image(i):
    return np.random.RandomState(i).randint(0, 255, (10, 12, 3)).astype(np.uint8)

class Made:
    def __init__(self, targets, make=image, **more):
        self.targets, self.make = targets, make
        vars(self).update(more)
    def __len__(self): return len(self.targets)
    def __getitem__(self, i): return self.make(i), self.targets[i]

class Bare(Made):
    def __init__(self, targets):
        self.values, self.make = targets, image
    def __len__(self): return len(self.values)
    def __getitem__(self, i): return self.make(i), self.values[i]

def only(**parts): return parts.get
"""


def own(folder: Path, body: str, more: str = "") -> Path:
    """`body` is what NAME(role) returns."""
    file = folder / "own.py"
    file.write_text(CODE.replace("{more}", more) + f"\ndef data(role):\n    return {body}\n")
    return Path(f"{file}:data")


def opened(path: Path, task: str = "auto", **more: object):
    return open_splits(DataConfig(path=path, **more), 0, task=task)


WORDS = '["cat", "ant", "bee"] * 4'


@pytest.mark.parametrize(
    ("made", "task", "kind", "names", "first"),
    [
        (f"Made({WORDS})", "auto", LABEL, ("ant", "bee", "cat"), 2),
        (f"Made({WORDS}, classes=['cat', 'bee', 'ant'])", "auto", LABEL, ("cat", "bee", "ant"), 0),
        ("Made(torch.arange(12) % 3, classes=['cat', 'bee', 'ant'])", "auto", LABEL, ("cat", "bee", "ant"), 0),
        ("Made(np.arange(12) % 2 * 9 + 1)", "auto", LABEL, ("1", "10"), 0),
        (f"Bare({WORDS})", "auto", LABEL, ("ant", "bee", "cat"), 2),
        (f"Made({WORDS})", "multi-label", LABELS, ("ant", "bee", "cat"), [0, 0, 1]),
        ("Made([['b', 'a'], [], ['c']] * 4)", "auto", LABELS, ("a", "b", "c"), [1, 1, 0]),
        ("Made(torch.eye(3).repeat(4, 1), classes=['x', 'y', 'z'])", "multi-label", LABELS, ("x", "y", "z"), [1, 0, 0]),
        ("Made([i / 2 for i in range(12)])", "auto", NUMBERS, ("target",), [0.0]),
        ("Made(range(12))", "regression", NUMBERS, ("target",), [0.0]),
        ("Made([(i / 2, i) for i in range(12)], classes=['a', 'b'])", "auto", NUMBERS, ("a", "b"), [0.0, 0.0]),
        ("Made(np.ones((12, 2)) * np.arange(12)[:, None])", "auto", NUMBERS, ("target1", "target2"), [0.0, 0.0]),
    ],
)  # fmt: skip
def test_targets(tmp_path, capsys, made, task, kind, names, first):
    """Of all kinds; where validation is given, all of the training set is in its order."""
    splits = opened(own(tmp_path, f"None if role == 'test' else {made}"), task)
    assert (splits.schema.kind, splits.schema.names, len(splits.train), len(splits.val)) == (kind, names, 12, 12)
    assert splits.train.targets[0].tolist() == first == splits.train.read(0)["target"].tolist()
    assert splits.test is None and splits.record == {"given": True, "counts": {"train": 12, "val": 12}}
    assert any("--task regression" in note for note in splits.notes) == ("1" in names)
    assert ("all 12 samples are read" in capsys.readouterr().err) == made.startswith("Bare")


def test_images_of_all_forms(tmp_path):
    more = f"""
def saved(i):
    Image.fromarray(image(i)).save("{tmp_path}/" + str(i) + ".png")
    return f"{tmp_path}/" + str(i) + ".png"
"""
    forms = {
        "image": "image", "pillow": "lambda i: Image.fromarray(image(i))", "path": "lambda i: Path(saved(i))",
        "text": "saved", "tensor": "lambda i: torch.from_numpy(image(i)).permute(2, 0, 1)",
        "mirrored": "lambda i: image(i)[:, :, ::-1].copy()[..., ::-1]",
        "alpha": "lambda i: np.concatenate([image(i), image(i)[..., :1]], 2)",
    }  # fmt: skip
    expected = torch.from_numpy(np.random.RandomState(1).randint(0, 255, (10, 12, 3)).astype(np.uint8)).permute(2, 0, 1)
    for make in forms.values():
        train = opened(own(tmp_path, f"Made({WORDS}, {make})", more)).train
        assert torch.equal(with_channels(train.read(1)["image"], 3), expected), make
        assert train.name(1) == "train[1]"
    grey = opened(own(tmp_path, f"Made({WORDS}, lambda i: image(i)[..., 0])")).train
    assert torch.equal(grey.read(1)["image"], expected[:1])


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ("None", ["('train') returned None", "nothing to train on"]),
        ("3", ["a int"]),
        ("Made([])", ["without samples"]),
        ("{}[role]", ["failed: KeyError", "(own.py, line "]),
        ("Made(['a', 'b'] * 3) if role == 'train' else Made(['c'])", ["val has classes", "c", "Known: a, b"]),
        ("Made([0, 3], classes=['a', 'b'])", ["3 is no class; there are 2"]),
        ("Made(['a', 'b', 'a', 'b'], classes=['a', 'b', 'c'])", ["no sample for training", "c"]),
        ("Made(['a', ['b']])", ["of no one kind"]),
        ("Made([None, None])", ["of no one kind"]),
        ("Made([0.5, float('nan')])", ["train[1] is [nan]", "finite"]),
        ("Made([[0, 1]] * 4)", ["target1, target2"]),
        ("Made(['a'] * 4)", ["one class only"]),
        ("Made(['a', 'b'] * 4, lambda i: image(i) / 255)", ["10 x 12 x 3 float64 as the image"]),
        ("Made(['a', 'b'] * 4, lambda i: image(i).astype('>u2'))", ["10 x 12 x 3 >u2 as the image"]),
        ("Made(['a', 'b'] * 4, lambda i: image(i).astype(object))", ["object as the image"]),
        ("Made([1e300, 0.5])", ["train[0] is [1e+300]", "finite"]),
        ("Made(['a', '\\ud800'] * 4)", ["'\\ud800' is no name"]),
        ("Made(['a', ''] * 4)", ["'' is no name"]),
        ("Made({i: 'a' for i in range(4)}, image)", ["targets cannot be read", "not a dict"]),
        ("Made([0, 1] * 4, classes=5)", ["classes cannot be read"]),
        ("Bare([{1, 'a'}] * 4)", ["targets cannot be read: TypeError"]),
        ("Made(['a', 'b'] * 4, lambda i: None)", ["NoneType as the image for train[0]"]),
        ("[image(0)] * 4", ["returned a ndarray for train[0]", "(image, target)"]),
        ("Made(['a', 'b'] * 4, classes=['a', 'a'])", ["the same name twice"]),
    ],
)
def test_what_is_refused(tmp_path, body, parts):
    with pytest.raises(UserError) as caught:
        opened(own(tmp_path, body))
    for part in parts:
        assert part in str(caught.value), str(caught.value)


def test_what_is_refused_of_lists_and_keys(tmp_path):
    path = own(tmp_path, "Made([[0, 1], [1, 0]] * 4)")
    with pytest.raises(UserError, match="attribute `classes`"):
        opened(path, "multi-label")
    with pytest.raises(UserError, match="2 labels"):
        opened(own(tmp_path, "Made([['a', 'b']] * 4)"), "single-label")
    with pytest.raises(UserError, match=r"data\.group: this is for tables"):
        opened(path, group="patient")
    with pytest.raises(UserError, match=r"Did you mean .*own\.py:NAME"):
        opened(tmp_path / "own.py")


def test_a_drawn_split_is_stratified_stored_and_bound_to_the_file(tmp_path):
    path = own(tmp_path, "Made(['a', 'b', 'c'] * 20) if role == 'train' else None")
    splits = opened(path, val_split=0.2)
    assert np.bincount(splits.val.targets).tolist() == [4, 4, 4]
    assert splits.record["counts"] == {"train": 48, "val": 12} and splits.val.name(0) in splits.record["val"]
    stored = {"fingerprint": splits.fingerprint, **json.loads(json.dumps(splits.record))}
    again = open_splits(DataConfig(path=path), 7, stored)
    assert [again.val.name(i) for i in range(12)] == [splits.val.name(i) for i in range(12)]
    name, part = open_part(DataConfig(path=path), splits.schema, None, stored)
    assert name == "val" and [part.name(i) for i in range(12)] == [splits.val.name(i) for i in range(12)]
    file = tmp_path / "own.py"
    file.write_text(file.read_text() + "\n# changed\n")
    assert opened(path).fingerprint != splits.fingerprint


def test_parts_for_a_trained_model(tmp_path):
    """Classes are numbered as the model numbers them, whatever the data set's own order is."""
    path = own(tmp_path, "{'train': Made([0, 1] * 3, classes=['a', 'b']), 'test': Made(['b'] * 2)}.get(role)")
    schema = Schema(LABEL, ("b", "x", "a"))
    assert open_part(DataConfig(path=path), schema, "test", None)[1].targets.tolist() == [0, 0]
    name, whole = open_part(DataConfig(path=path), schema, None, None)
    assert name == "all" and whole.targets.tolist() == [2, 0] * 3 + [0, 0] and whole.name(7) == "test[1]"
    with pytest.raises(UserError, match="val"):
        open_part(DataConfig(path=path), schema, "val", None)
    with pytest.raises(UserError, match="classes that are not known: b"):
        open_part(DataConfig(path=path), Schema(LABEL, ("a", "c")), "test", None)


def test_what_it_draws_follows_the_sample(tmp_path):
    """Also of a source that was sent to another process; and what it raises is a damaged image."""
    make = "lambda i: image(i + 1000 * random.randrange(99) + int(torch.randint(99, ())) * 99000) if i else 1 / i"
    train = opened(own(tmp_path, f"Made({WORDS}, {make})")).train
    random.seed(1)
    expected = train.read(5)["image"]
    random.seed(2)
    assert torch.equal(pickle.loads(pickle.dumps(train)).read(5)["image"], expected)
    with pytest.raises(BadSample, match=r"train\[0\]: ZeroDivisionError: .*own\.py, line"):
        train.read(0)


FILES = """
from pathlib import Path

class Shapes:
    def __init__(self, role):
        self.files = sorted(Path({root!r}, role).glob("*/*.png"))
        self.targets = [file.parent.name for file in self.files]
    def __len__(self): return len(self.files)
    def __getitem__(self, i):
        if {bad!r} in str(self.files[i]): raise OSError("no such plate")
        return self.files[i], self.targets[i]

def shapes(role): return Shapes(role) if Path({root!r}, role).is_dir() else None
"""


def files(folder: Path, root: Path, bad: str = "nothing") -> str:
    (folder / "own.py").write_text(FILES.format(root=str(root), bad=bad))
    return f"{folder / 'own.py'}:shapes"


def test_runs_on_it(shapes, tmp_path, capsys):
    """The bits are those of the folder with the same images; on two processes the curve is the same; it resumes."""
    data = files(tmp_path, shapes)
    train_here(shapes, tmp_path / "folder", epochs=2)
    train_here(data, tmp_path / "own", "--workers", 1, epochs=2)
    curve = column(tmp_path / "folder", "loss")
    assert column(tmp_path / "own", "loss") == curve
    train_on(2, data, tmp_path / "two", epochs=2)
    assert column(tmp_path / "two", "loss") == pytest.approx(curve, rel=1e-4)
    train_here(data, tmp_path / "own", "--extend", epochs=3)
    assert len(column(tmp_path / "own", "loss")) == len(curve) * 3 // 2
    evaluated = _evaluate(capsys, tmp_path / "own")
    assert evaluated == _evaluate(capsys, tmp_path / "own", "--data", str(shapes), "--split", "val")
    (tmp_path / "own.py").write_text("raise RuntimeError")
    with pytest.raises(UserError, match="RuntimeError"):
        train_here(data, tmp_path / "own", "--extend", epochs=4)
    assert "which is run only if it is named" in _report(tmp_path / "own")


def _evaluate(capsys, run: Path, *more: str) -> dict[str, float]:
    from ddp_ft.evaluate import evaluate

    capsys.readouterr()
    evaluate.main([str(run), "--device", "cpu", *more], standalone_mode=False)
    return json.loads(capsys.readouterr().out)


def _report(run: Path) -> str:
    from ddp_ft.cli.report import report

    report.main([str(run)], standalone_mode=False)
    return (run / "report.html").read_text()


def test_a_sample_that_raises_is_damaged(shapes, tmp_path):
    data = files(tmp_path, shapes, bad="train/disc/03.png")
    with pytest.raises(UserError, match=r"1 of 30 images cannot be read:\s+train\[\d+\]: OSError: no such plate"):
        train_here(data, tmp_path / "fail")
    train_here(data, tmp_path / "skip", "--set", "data.on_error=skip", "--set", "data.max_damaged=0.1")
    [line] = (tmp_path / "skip" / "quarantine.txt").read_text().splitlines()
    assert line.startswith("train[") and line.endswith(", line 10)")


def test_code_inside_a_run_folder_is_not_run(shapes, tmp_path, capsys):
    run = tmp_path / "run"
    train_here(files(tmp_path, shapes), run)
    (tmp_path / "own.py").rename(run / "own.py")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(tmp_path / "own.py"), str(run / "own.py")))
    with pytest.raises(UserError, match="lies inside it"):
        _evaluate(capsys, run)


def test_the_doctor_reads_it(shapes, tmp_path, capsys):
    from ddp_ft.doctor import doctor

    options = ["--data", files(tmp_path, shapes, bad="val/disc/10"), "--device", "cpu", "--json"]
    doctor.main(options, standalone_mode=False)
    [found] = [each for each in json.loads(capsys.readouterr().out)["findings"] if each["name"] == "readable"]
    assert "1 of 42" in found["text"] and "no such plate" in found["paths"][0]
