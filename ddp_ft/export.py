"""`python -m ddp_ft.export RUN --format onnx --output model.onnx`: a model for other programs."""

from pathlib import Path

import click

from ddp_ft.cli.options import PATH, choice, importing, model_argument
from ddp_ft.cli.output import print_note
from ddp_ft.cli.process import run_command
from ddp_ft.distributed.environment import read_launch
from ddp_ft.errors import EXIT_FAILED
from ddp_ft.run_folder.output_path import check_output_file, check_output_folder, weights_size


@click.command()
@model_argument
@click.option(
    "--format", "kind", type=click.Choice(["safetensors", "onnx", "torch_export", "torch.export"]), required=True,
    help="Weights that timm, transformers and hubs take; an ONNX file; torch.export's .pt2, by either name.",
)  # fmt: skip
@click.option(
    "--output", type=PATH, required=True, help="FILE.onnx, FILE.pt2; for safetensors a folder, or FILE.safetensors."
)
@choice("--device", ["auto", "cpu", "cuda"], "Where it is traced, compared and timed.", default="cpu")
@click.option(
    "--with-preprocessing", is_flag=True,
    help="ONNX of images: resize, crop and normalise inside; uint8 images N x H x W x channels of any size go in.",
)  # fmt: skip
@click.option(
    "--check", "count", type=click.IntRange(min=1), default=32, show_default=True, metavar="N",
    help="Images or texts on which it is compared with the original.",
)  # fmt: skip
@click.option(
    "--check-images", "images", type=PATH, metavar="DIR",
    help="Compare on these.  [default: those that the run is evaluated on; noise if they are not here]",
)  # fmt: skip
@click.option(
    "--merge", is_flag=True,
    help="Of a run with an adapter: merge it into the weights that it is on anew, and compare with both apart.",
)  # fmt: skip
def export(
    model: Path, kind: str, output: Path, device: str, with_preprocessing: bool, count: int, images: Path | None,
    merge: bool,
) -> int:  # fmt: skip
    """Write a run folder's best model as a file that other programs load.

    Nothing is written unless the file returns what the model returns: outputs within rounding, and the same answers.
    """
    launch = read_launch()
    is_old_folder = kind == "safetensors" and output.is_dir()
    (check_output_folder if is_old_folder else check_output_file)(output, room=weights_size(model))
    with importing():
        from ddp_ft.exporters.export_model import export_model
        from ddp_ft.exporters.request import ExportRequest

    kind = kind.replace(".", "_")
    request = ExportRequest(model, kind, output, device, with_preprocessing, count, images, merge)
    report = export_model(request, launch)
    for name, value in report.lines():
        print_note(f"  {name:<12} {value}")
    if report.is_good:
        print_note(f"Wrote {output}")
        return 0
    click.echo("Error: the export does not do what the model does; it was removed.", err=True)
    return EXIT_FAILED


if __name__ == "__main__":
    run_command(export)
