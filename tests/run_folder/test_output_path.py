"""Places for results that cannot be: found before the work, in all commands."""

import os
import shutil
import subprocess
import threading
from pathlib import Path

import click
import pytest

from ddp_ft.errors import UserError
from ddp_ft.files import write_text
from ddp_ft.run_folder.folder import RunFolder
from ddp_ft.run_folder.output_path import check_output_file, check_output_folder

BAD_FILES = ["nodir/x{}", "folder{}", "file/x{}", "n" * 240 + "{}"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    for suffix in ("", ".json", ".csv", ".onnx", ".html"):
        Path(f"folder{suffix}").mkdir()
        Path(f"folder{suffix}/other").touch()


def evaluate(output):
    from ddp_ft.evaluate import evaluate

    evaluate.main(["run", "--data", "data", "--output", f"{output}".format(".json")], standalone_mode=False)


def predict(output):
    from ddp_ft.predict import predict

    predict.main(["run", "data", "--output", f"{output}".format(".csv")], standalone_mode=False)


def export(output):
    from ddp_ft.export import export

    words = ["run", "--format", "onnx", "--output", f"{output}".format(".onnx")]
    export.main(words, standalone_mode=False)


def report(output):
    from ddp_ft.cli.report import report

    report.main(["run", "--output", f"{output}".format(".html")], standalone_mode=False)


def compare(output):
    from ddp_ft.cli.report import report

    report.main(["run", "other", "--output", f"{output}".format(".html")], standalone_mode=False)


@pytest.mark.parametrize("output", BAD_FILES, ids=["no folder", "folder", "below a file", "long"])
@pytest.mark.parametrize("command", [evaluate, predict, export, report, compare])
def test_a_file_that_cannot_be_written_is_named_before_the_model_is_read(command, output):
    """There is no model `run`, which the work would find first."""
    before = sorted(Path().rglob("*"))
    with pytest.raises((UserError, click.ClickException), match=output.partition("{")[0]):
        command(output)
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(("output", "named"), [("file/x", "is a file"), ("n" * 250, "too long")])
def test_a_folder_that_cannot_be_made(output, named):
    from ddp_ft.cli.average import average

    Path("run").mkdir()
    with pytest.raises(UserError, match=named):
        average.main(["run", "--last", "2", "--output", output], standalone_mode=False)
    assert not any(Path("run").iterdir())


def test_room_is_asked_for():
    free = shutil.disk_usage(Path()).free
    check_output_file(Path("x.pt2"), room=free // 2)
    check_output_folder(Path("a/b/c"))
    for check in (check_output_file, check_output_folder):
        with pytest.raises(UserError, match="MiB are needed"):
            check(Path("x.pt2"), room=2 * free)
    assert not Path("x.pt2").exists() and not Path("a").exists()


def test_a_full_disk(tmp_path, request):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", disk], capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    request.addfinalizer(lambda: subprocess.run(["umount", "-l", disk], check=True))
    check_output_file(disk / "x.json")
    with (disk / "big").open("wb", buffering=0) as stream, pytest.raises(OSError):
        while True:
            stream.write(b"x" * 4096)
    with pytest.raises(UserError, match="No space left"):
        check_output_file(disk / "x.json")
    assert [file.name for file in disk.iterdir()] == ["big"]


def test_a_pipe_is_written_to_and_stays_one():
    os.mkfifo("pipe")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(Path("pipe").read_text()))
    reader.start()
    check_output_file(Path("pipe"), streams=True)
    write_text(Path("pipe"), "metrics")
    reader.join(20)
    assert read == ["metrics"] and Path("pipe").is_fifo()
    with pytest.raises(UserError, match="no regular file"):
        check_output_file(Path("pipe"))


@pytest.mark.parametrize(("path", "named"), [("/", "root"), ("//.", "root"), ("a\udcff", "UTF-8")])
def test_run_folders_that_are_refused(path, named):
    with pytest.raises(UserError, match=named):
        RunFolder(Path(path)).create()


def test_what_is_read_or_a_run_needs_is_not_written_over():
    Path("run").mkdir()
    for name in ("config.yaml", "plan.json", "x.json"):
        Path("run", name).touch()
    for output, inputs in (("run/plan.json", ()), ("run/../file", ("absent", "a*" * 200, "file"))):
        with pytest.raises(UserError, match="would be lost"):
            check_output_file(Path(output), inputs=[Path(each) for each in inputs])
    check_output_file(Path("run/x.json"), inputs=[Path("folder")])
    Path("plan.json").touch()
    check_output_file(Path("plan.json"))
