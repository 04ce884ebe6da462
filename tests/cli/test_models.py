"""`ddp-ft models`: names of models, and the stages and blocks of one."""

import json
import re
import subprocess
import sys

import pytest

from ddp_ft.cli.models import facts, models
from ddp_ft.cli.process import run_command
from ddp_ft.config.user_cache import FOLDER_VARIABLE
from ddp_ft.models import model_names
from ddp_ft.models.freezing import frozen_names
from tests.support import nets


@pytest.fixture
def call(capsys, monkeypatch):
    """What the command prints, its exit code and what it prints as an error."""
    monkeypatch.setenv(FOLDER_VARIABLE, "")

    def run(*arguments: str) -> tuple[str, int, str]:
        with pytest.raises(SystemExit) as ended:
            run_command(models, list(arguments))
        out, err = capsys.readouterr()
        return out, ended.value.code, err

    return run


def test_all_names(call) -> None:
    out, code, _ = call()
    assert code == 0 and out.splitlines() == model_names()


@pytest.mark.parametrize(
    ("pattern", "wanted", "unwanted"),
    [
        ("resnet18", ["timm/resnet18", "timm/resnet18.a1_in1k", "torchvision/resnet18"], ["timm/resnet18d"]),
        ("torchvision/resnet*", ["torchvision/resnet18", "torchvision/resnet50"], ["timm/resnet18"]),
        ("*b0*", ["timm/efficientnet_b0", "torchvision/efficientnet_b0"], ["timm/efficientnet_b1"]),
        ("resnet18.a1_in1k", ["timm/resnet18.a1_in1k"], ["timm/resnet18"]),
    ],
)
def test_names_that_match(call, pattern, wanted, unwanted) -> None:
    out, code, _ = call(pattern)
    names = out.splitlines()
    assert code == 0 and set(wanted) <= set(names) and not set(unwanted) & set(names)


def test_the_table_as_json(call) -> None:
    out, code, _ = call("resnet18*", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0 and {"timm/resnet18", "timm/resnet18d", "torchvision/resnet18"} == rows.keys()
    assert rows["timm/resnet18"]["parameters"] == rows["torchvision/resnet18"]["parameters"] == 11_689_512
    assert rows["torchvision/resnet18"]["input"] == [224, 224]
    assert list(rows["torchvision/resnet18"]["weights"]) == ["IMAGENET1K_V1"]
    assert rows["timm/resnet18"]["weights"]["a3_in1k"] == [160, 160]


def test_the_table(call, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out, code, _ = call("resnet18.a1_in1k", "--table")
    assert code == 0 and re.search(r"timm/resnet18 +11,689,512 +224 x 224 +a1_in1k$", out.rstrip())
    out, code, _ = call("torchvision/*", "--table")
    assert code == 0 and "timm's models are built" not in out and max(map(len, out.splitlines())) <= 80


def test_many_models_are_not_built(call) -> None:
    """All of timm: seconds instead of minutes."""
    rows = facts(model_names())
    assert {row["name"] for row in rows} == {name.partition(".")[0] for name in model_names()}
    of_timm = [row for row in rows if row["name"].startswith("timm/")]
    assert all(row["parameters"] is None for row in of_timm)
    assert all(row["parameters"] for row in rows if row not in of_timm)
    assert sum(bool(row["input"]) for row in rows) > 0.9 * len(rows)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rsnet18"], "Error: No model matches 'rsnet18'.\nDid you mean resnet18"),
        (["convnxt_tiny*"], "Did you mean"),
        (["zzzzzz"], "resnet*"),
        (["--layers"], "--layers needs the name of a model."),
        (["resnet18", "--layers"], "Several libraries have a model 'resnet18'."),
        (["timm/rsnet18", "--layers"], "Unknown model 'timm/rsnet18'."),
        (["none.py:make", "--layers"], "No such file: none.py"),
        (["--leyers"], "No such option"),
    ],
)
def test_mistakes(call, arguments, said) -> None:
    out, code, err = call(*arguments)
    assert (out, code) == ("", 2) and said in err


def _rows(text: str) -> list[re.Match[str]]:
    row = re.compile(r"^ *(\d+|head|) +(\d+) +([\d,]+) +([\d.]+%)?  +(\S+)", re.MULTILINE)
    return list(row.finditer(text))


def test_layers_of_a_residual_network(call) -> None:
    out, code, _ = call("torchvision/resnet18", "--layers")
    assert code == 0 and "first K of 4 stages" in out
    assert max(map(len, out.splitlines())) <= 80
    rows = _rows(out)
    assert [row[1] for row in rows] == ["0", "", "1", "", "2", "", "3", "", "4", "head"]
    assert [int(row[2]) for row in rows] == list(range(10))
    assert sum(int(row[3].replace(",", "")) for row in rows) == 11_177_538  # with a head of two
    assert rows[2][4] == "1.4%" and rows[-2][4] == "100.0%"  # 157,504 of 11,176,512
    assert "conv1 (Conv2d)" in out and "layer2.1 (BasicBlock)" in out and "fc (Linear)" in out
    assert re.search(r"BatchNorm2d\s9,600", out) and re.search(r"Conv2d\s11,166,912", out)


def test_the_table_tells_what_a_stage_freezes(call) -> None:
    out, _, _ = call(f"{nets.THIS_FILE}:with_batch_norm", "--layers")
    shares = {row[1]: row[4] for row in _rows(out)}
    sizes = {name: parameter.numel() for name, parameter in nets.with_batch_norm().named_parameters()}
    head = {"9.weight", "9.bias"}
    body = sum(size for name, size in sizes.items() if name not in head)
    for count in ("0", "1"):
        frozen = frozen_names(nets.with_batch_norm(), head, f"stages:{count}")
        assert shares[count] == f"{sum(sizes[name] for name in frozen) / body:.1%}"


@pytest.mark.parametrize("name", ["timm/test_vit", "torchvision/vit_b_32", "torchvision/mobilenet_v3_small"])
def test_tables_fit_a_terminal(call, name) -> None:
    out, code, _ = call(name, "--layers")
    assert code == 0 and max(map(len, out.splitlines())) <= 80
    assert _rows(out)[-1][1] == "head"


def test_help_needs_no_torch() -> None:
    script = "import sys, ddp_ft.cli.models; print([m for m in ('torch', 'timm', 'torchvision') if m in sys.modules])"
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert outcome.stdout.strip() == "[]"
