"""report.html, model_card.md and `ddp-ft report`."""

import base64
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from PIL import Image

from ddp_ft.cli.report import report
from ddp_ft.errors import UserError
from ddp_ft.reporting.card import renewed_card
from ddp_ft.reporting.class_table import class_counts
from ddp_ft.reporting.facts import read_run
from ddp_ft.reporting.set_section import open_evaluated
from tests.support.finished import write_finished
from tests.support.marks import slowly
from tests.support.runs import read, train_here

# What folders may be called; "/" is the one character that cannot be in a name.
HOSTILE = ["<script>alert(1)<script>", '"><img src=x onerror=alert(1)>', "$\\frac{a}$ & `b` | c"]


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, file):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(Path(file).read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def assert_is_harmless(page):
    """Nothing that runs and nothing that is loaded from elsewhere."""
    assert not {"script", "iframe", "link", "object", "base", "form"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:image/"))
    assert not re.findall(r"url\((?!#|data:image)", "".join(str(attributes) for _, attributes in page.tags))


def call(*arguments):
    return report.main([str(each) for each in arguments], standalone_mode=False)


@pytest.fixture(scope="module")
def hostile_data(shapes, tmp_path_factory):
    """The three shapes under other names, of classes and of files."""
    folder = tmp_path_factory.mktemp("hostile")
    for part in ("train", "val"):
        for source, name in zip(sorted((shapes / part).iterdir()), HOSTILE, strict=True):
            (folder / part / name).mkdir(parents=True)
            for image in source.iterdir():
                shutil.copy(image, folder / part / name / f"<script>{image.name}")
    return folder


@pytest.fixture(scope="module")
def trained(hostile_data, tmp_path_factory):
    run = tmp_path_factory.mktemp("report") / "run"
    assert train_here(hostile_data, run, "--set", "log.report=true", epochs=2) == 0
    return run


def test_a_finished_run_has_a_page(trained):
    page = Page(trained / "report.html")
    assert_is_harmless(page)
    accuracy = read(trained, "summary.json")["val"]["accuracy"]
    assert f"{accuracy * 100:.1f} %" in page.text and "95 % interval" in page.text
    for name in HOSTILE:
        assert name in page.text.replace("\n", "")
    images = page.of("img")
    assert len(images) >= 12 and any("<script>" in each["alt"] for each in images)
    for each in images:
        Image.open(io.BytesIO(base64.b64decode(each["src"].partition(",")[2]))).verify()
    charts = {each["aria-label"] for each in page.of("svg")}
    assert {"Loss", "Metrics on the validation set", "Gradient norm before clipping", "Reliability diagram"} <= charts
    assert {"ROC curves", "Precision-recall curves"} <= charts
    html = (trained / "report.html").read_text(encoding="utf-8")
    assert html.count('<td class="number">10</td><td class="number">4</td>') == 3  # each class in train/ and val/
    for text in ("Confusion matrix", "Correct and most certain", "torch 2", "Grade", "training steps", "config.yaml"):
        assert text in page.text


def test_its_card_is_what_hubs_read(trained):
    from huggingface_hub import ModelCard
    from huggingface_hub.repocard_data import model_index_to_eval_results

    card = ModelCard((trained / "model_card.md").read_text(encoding="utf-8"))
    front = yaml.safe_load(card.content.split("---\n")[1])
    assert front["license"] == "unknown" and front["pipeline_tag"] == "image-classification"
    _, results = model_index_to_eval_results(front["model-index"])
    found = {each.metric_type: each.metric_value for each in results}
    assert found["accuracy"] == pytest.approx(read(trained, "summary.json")["val"]["accuracy"], abs=1e-6)
    assert {each.dataset_split for each in results} == {"validation"}
    assert "<script>" not in card.text.replace("\\<script\\>", "")


def test_a_card_that_was_edited_stays(tmp_path):
    facts, card = read_run(write_finished(tmp_path)), tmp_path / "model_card.md"
    card.write_text(renewed_card(facts, {}, card))
    assert renewed_card(facts, {}, card) is not None
    card.write_text(card.read_text().replace("license: unknown", "license: mit"))
    assert renewed_card(facts, {}, card) is None


def test_an_unfinished_run_has_a_page_too(tmp_path, capsys):
    run = write_finished(tmp_path / "run")
    for gone in ("summary.json", "provenance.json", "evaluation/val.safetensors", "best/model.json"):
        (run / gone).unlink()
    (run / "model_card.md").write_text("mine")
    assert not call(run)
    page = Page(run / "report.html")
    assert "3 of 3 epochs" in page.text and "accuracy, validation set" in page.text
    assert (run / "model_card.md").read_text() == "mine"


@pytest.mark.parametrize("counts", [None, 3, {"train": "many"}, {"train": [1, 2]}, {"train": [5, "x", 7]}])
def test_class_counts_of_other_runs_are_those_of_the_evaluated_set(counts, tmp_path):
    """Of earlier versions, whose split.json has none, and of files that somebody has edited."""
    run = write_finished(tmp_path / "run")
    facts = read_run(run)
    given = replace(facts, split={**facts.split, "class_counts": counts})
    assert class_counts(given)["sets"] == ["validation"]
    assert sum(row["counts"][0] for row in class_counts(given)["rows"]) == len(facts.scored_sets["val"])


def test_images_are_those_of_the_evaluation(trained, hostile_data, tmp_path):
    moved = shutil.copytree(hostile_data, tmp_path / "moved")
    facts = read_run(trained)
    assert len(open_evaluated(facts, "val")) == len(open_evaluated(facts, "val", moved)) == 12
    next((moved / "val" / HOSTILE[2]).iterdir()).unlink()
    with pytest.raises(UserError, match="other val images"):
        open_evaluated(facts, "val", moved)


def test_each_start_is_recorded(trained):
    (start,) = read(trained, "provenance.json")
    assert start["world_size"] == 1 and start["versions"]["torch"] and start["command"]
    assert not [file for file in (trained / "best").iterdir() if "provenance" in file.read_bytes().decode("latin-1")]


def test_a_report_that_fails_is_one_warning(shapes, tmp_path, capsys):
    (tmp_path / "report.html").mkdir()
    assert train_here(shapes, tmp_path, "--set", "log.report=true", "--set", "train.max_steps=1") == 0
    assert read(tmp_path, "summary.json")["status"] == "done"
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Warning: the report ")]
    assert len(warnings) == 1 and "report.html" in warnings[0]


def test_log_report(shapes, trained, tmp_path):
    assert train_here(shapes, tmp_path, "--set", "log.report=false", "--set", "train.max_steps=1") == 0
    assert not (tmp_path / "report.html").exists() and not (tmp_path / "model_card.md").exists()
    assert (trained / "report.html").exists()


@pytest.mark.parametrize("task", [*slowly("multi-label"), "regression"])
def test_other_tasks(task, tmp_path):
    names = ("<i>cat 猫", "dog")
    run = write_finished(tmp_path / "run", names, task, test=True)
    (run / "summary.json").write_text(json.dumps({**read(run, "summary.json"), "stopped_early": True}))
    assert not call(run)
    page = Page(run / "report.html")
    assert_is_harmless(page)
    assert "Done after 3 of 3 epochs" in page.text  # early stopping on the last step ended nothing
    wanted = {"multi-label": ("Thresholds", "mAP, test set"), "regression": ("predicted over true", "RMSE, test set")}
    assert all(text in page.text for text in ("<i>cat 猫", *wanted[task]))
    assert str(run / "nowhere") in page.text  # the images, with the reason why there are none
    assert "name: MAE\n" in (run / "model_card.md").read_text() or task == "multi-label"


def compare(tmp_path, capsys, *runs):
    assert not call(*runs, "--output", tmp_path / "page.html")
    assert_is_harmless(Page(tmp_path / "page.html"))
    return capsys.readouterr().out


SKILLS = {1.0: 7.5, 3.0: None, 3.01: None}  # with --max-minutes


def test_runs_are_compared_on_the_same_images(tmp_path, capsys):
    settings = [{"optim.lr": skill / 100, "train.max_minutes": minutes} for skill, minutes in SKILLS.items()]
    runs = [
        write_finished(tmp_path / f"run{skill}", seed=seed, skill=skill, samples=200, settings=settings[seed])
        for seed, skill in enumerate(SKILLS)
    ]
    said = compare(tmp_path, capsys, *runs[:2])
    assert re.search(r"run3.0 is better than run1.0 by \+\d+\.\d .*accuracy \(95 % .* \+", said)
    assert "p < 0.001)" in said
    text = Page(tmp_path / "page.html").text
    assert "optim.lr" in text and "0.03" in text and "weight_decay" not in text
    assert "train.max_minutes7.5none" in text  # one cell after the other
    said = compare(tmp_path, capsys, *runs)
    assert "2 comparisons" in said and len(re.findall("run3.01? and run3.01?: ", said)) == 1


def test_runs_on_other_images_are_not_tested(tmp_path, capsys):
    first, second = (write_finished(tmp_path / f"run{n}", seed=n, skill=1 + n) for n in range(2))
    split = read(second, "split.json")
    (second / "split.json").write_text(json.dumps({**split, "fingerprint": "0" * 32}))
    said = compare(tmp_path, capsys, first, second)
    assert "run1" in said and "run0" in said and "better" not in said and "95 %" not in said
    other = write_finished(tmp_path / "numbers", task="regression")
    with pytest.raises(UserError, match="no metric in common"):
        call(first, other)


def damaged(folder, file, text):
    (folder / file).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("plan.json", "{"),
        ("plan.json", '{"task": "single-label"}'),
        ("classes.json", "3"),
        ("classes.json", '["cat"]'),
        ("config.yaml", "a: ["),
        ("summary.json", "[]"),
        ("summary.json", '{"status": "done", "val": 3}'),
        ("summary.json", '{"wall_seconds": "long"}'),
        ("split.json", "[]"),
        ("best/model.json", "nothing"),
        ("best/model.json", "{}"),
        ("evaluation/val.safetensors", "nothing"),
    ],
)
def test_damaged_folders_are_one_message(file, text, tmp_path):
    run = damaged(write_finished(tmp_path / "run"), file, text)
    with pytest.raises(UserError) as caught:
        call(run)
    assert "run" in caught.value.message and "Traceback" not in str(caught.value)


def test_folders_that_are_no_runs(tmp_path, capsys):
    run = write_finished(tmp_path / "run")
    for wrong in ([tmp_path / "nowhere"], [tmp_path], [run, tmp_path], [run, run], [run, "--output", tmp_path / "a/b"]):
        with pytest.raises(UserError):
            call(*wrong)
    other = write_finished(tmp_path / "other")
    with pytest.raises(UserError, match="comparison"):
        call(run, other, "--data", tmp_path)
    with pytest.raises(UserError, match=f"Name one of its runs, or several: {other}, {run}"):
        call(tmp_path)
    call(run, other, "--output", tmp_path / "c.html")
    assert "both have the same accuracy (p = 1)" in capsys.readouterr().out


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_browser_shows_all_images_without_a_network(trained, tmp_path):
    page = (trained / "report.html").read_text(encoding="utf-8")
    count = "[...document.images].filter(each => each.complete && each.naturalWidth > 1).length"
    # What is wider than the screen of a phone, and texts that lie outside of their chart.
    wide = "(document.body.style.width = '400px', document.body.scrollWidth - 400)"
    cut = (
        "[...document.querySelectorAll('svg.chart')].flatMap(chart => {const edge = chart.getBoundingClientRect();"
        "return [...chart.querySelectorAll('text')].filter(text => {const box = text.getBoundingClientRect();"
        "return box.left < edge.left - 1 || box.right > edge.right + 1 || box.top < edge.top - 1})}).length"
    )
    # The page itself allows no script; the copy has one that counts.
    probe = f"<script>onload = () => document.body.dataset.seen = `${{{count}}} ${{{wide}}} ${{{cut}}}`</script></body>"
    copy = tmp_path / "copy.html"
    allowed = page.replace("default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';")
    copy.write_text(allowed.replace("</body>", probe), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    options += ["--proxy-server=127.0.0.1:9", "--window-size=500,900", "--dump-dom"]
    done = subprocess.run([CHROMIUM, *options, copy.as_uri()], capture_output=True, text=True, timeout=120)
    seen, too_wide, outside = re.search(r'data-seen="(\d+) (-?\d+) (\d+)"', done.stdout).groups()
    assert int(seen) == len(Page(trained / "report.html").of("img")) > 0
    assert int(too_wide) <= 0 and int(outside) == 0
