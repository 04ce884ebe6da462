"""Each command of the guides in docs/ runs, with a tiny model of random weights in place of a pretrained one."""

import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models import save_for_hf

from tests.support.runs import read
from tests.system.docs.test_readme import TINY, run

DOCS = Path(__file__).resolve().parents[3] / "docs"
GUIDES = ["first_run.md", "own_data.md", "resume.md", "recipes.md", "monitoring.md", "choosing.md", "small_sets.md"]
# Run by other tests: tests/system/docs/test_package.py, tests/launch/test_tensorboard.py, and
# tests/diagnostics/test_learning_curve.py, as random weights have no curve.
# Without Slurm: the lines that the command before it has printed.
ELSEWHERE = ("pip install .", "./launch/tensorboard.sh ", "sbatch ", "ddp-ft report runs/pets --learning-curve")


def commands_of(guide: str) -> list[str]:
    text = (DOCS / guide).read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    return [line.split("   #")[0].rstrip() for block in blocks for line in block.splitlines() if line]


def write_files_of(guide: str, folder: Path) -> None:
    """Each file of Python on the page, whose first line is its name."""
    text = (DOCS / guide).read_text(encoding="utf-8")
    for name, content in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", text, flags=re.DOTALL):
        (folder / name).write_text(content)


def smaller(command: str) -> str:
    """The same on the tiny data: fewer epochs, where nothing else counts on their number."""
    command = re.sub(r"--model \S+", f"--model {TINY} --image-size 32 --weights none --batch-size 8", command)
    if "doctor" in command:
        command = command.replace(" --weights none --batch-size 8", " --weights none")
    command = command.replace("--nproc_per_node=4", "--nproc_per_node=2 --standalone").replace("~/pets", "pets")
    if re.search(r"ddp_ft\.train|ddp-ft (train|kfold)", command) and "--epochs" not in command:
        command = command.replace(" --data", " --epochs 2 --data")
    return re.sub(r"--epochs (\d\d|[4-9])", "--epochs 2", command.replace("~/bands", "bands"))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("guide", GUIDES)
def test_the_commands_of_a_guide_run_in_their_order(guide, shapes, tmp_path):
    (tmp_path / "pets").symlink_to(shapes if guide != "small_sets.md" else shapes / "train")
    (tmp_path / "photos").symlink_to(shapes / "val")
    rows = [
        f"{file},{file.parent.name},{20 + number / 2},{number // 3},{number % 5}"
        for number, file in enumerate(sorted((shapes / "train").rglob("*.png")))
    ]
    for file in shapes.rglob("*.png") if guide == "own_data.md" else ():
        array = tmp_path / "bands" / file.relative_to(shapes).with_suffix(".npy")
        array.parent.mkdir(parents=True, exist_ok=True)
        np.save(array, np.asarray(Image.open(file))[..., [0, 1, 2, 0, 1]])
    (tmp_path / "scans.csv").write_text("\n".join(["path,label,age,patient,part", *rows]))
    for command in commands_of(guide):
        if command.startswith(ELSEWHERE):
            continue
        done = run(smaller(command), tmp_path)
        assert done.returncode in ((0, 2) if "doctor" in command else (0,)), (command, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr, (command, done.stderr)
    for summary in tmp_path.glob("runs/*/summary.json"):
        assert read(summary.parent, "summary.json")["status"] == "done"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_commands_of_the_page_on_own_models(shapes, tmp_path):
    """With the page's own network, another script's checkpoint and a folder of timm, instead of the tiny model."""
    write_files_of("own_code.md", tmp_path)
    (tmp_path / "pets").symlink_to(shapes)
    state = timm.create_model("resnet18", num_classes=5).state_dict()
    torch.save(
        {"epoch": 1, "model": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "theirs.pth"
    )
    save_for_hf(timm.create_model("test_resnet", num_classes=4), str(tmp_path / "exported"))
    for command in commands_of("own_model.md"):
        small = " --image-size 32 --epochs 1 --batch-size 8" if ".train" in command else ""
        done = run(command.replace("~/pets", "pets") + small, tmp_path)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        if "theirs.pth" in command:
            assert "0 missing, 0 unexpected; read from 'model'; without the prefix 'module.'" in done.stdout


def test_each_guide_is_tested_and_named_in_the_readme():
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    pages = [
        "own_model.md",
        "doctor.md",
        "trackers.md",
        "report.md",
        "slurm.md",
        "deployment.md",
        "commands.md",
        "options.md",
        "own_code.md",
        "text.md",
        "adapters.md",
    ]  # tested elsewhere
    assert [guide for guide in [*GUIDES, *pages] if f"docs/{guide}" not in readme] == []
