"""A model as an ONNX file, with its preprocessing inside if requested."""

import importlib.util
import json
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddp_ft.contracts import Call
from ddp_ft.data.image.preprocess import Preprocess
from ddp_ft.errors import UserError
from ddp_ft.inference.exported import IMAGES, OUTPUTS, RAW_IMAGES
from ddp_ft.models.outputs import OutputsAlone

# Attributes of Resize for torchvision's resizing, whose bicubic has -0.5 instead of ONNX's default -0.75. The keys are
# those of `transforms.INTERPOLATIONS`.
_CUBIC = 'mode="cubic", cubic_coeff_a=-0.5, exclude_outside=1, antialias=1'
_RESIZE = {
    "nearest": 'mode="nearest", nearest_mode="round_prefer_ceil"',
    "bilinear": 'mode="linear", antialias=1',
    "bicubic": _CUBIC,
    "lanczos": _CUBIC,
    "random": _CUBIC,
}
_FLOAT, _INT64 = 1, 7  # ONNX's numbers of types
# A file of protocol buffers cannot be larger.
_LARGEST = 2**31 - 1


def trace(module: nn.Module, preprocess: Preprocess, device: torch.device) -> Any:
    """torch.export's program of the module in evaluation mode, for any number of images at a time."""
    example = torch.zeros(2, preprocess.channels, *preprocess.size, device=device)
    shapes = ({0: torch.export.Dim("batch")},)
    with torch.no_grad(), quiet():
        return torch.export.export(module, (example,), dynamic_shapes=shapes, strict=False)


def outputs_alone(module: nn.Module, call: Call, outputs: int, preprocess: Preprocess) -> nn.Module:
    """The module, if all that it returns are its outputs, B x `outputs`; else one that returns these alone."""
    example = torch.zeros(2, preprocess.channels, *preprocess.size, device=next(module.parameters()).device)
    with torch.no_grad():
        found = module(example)
    is_plain = isinstance(found, torch.Tensor) and found.shape == (2, outputs)
    return module if is_plain else OutputsAlone(module, call)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings and logs of torch's exporters."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def check_installed() -> None:
    """UserError unless the packages that write and run ONNX are installed."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--format onnx needs {', '.join(missing)}: not installed.", "Install it: pip install 'ddp_ft[export]'."
        )


def check_preprocessing(preprocess: Preprocess) -> None:
    """UserError for a preprocessing that an ONNX file cannot have inside."""
    if preprocess.crop_mode not in ("center", "squash") or preprocess.crop_pct > 1:
        raise UserError(
            f"--with-preprocessing: the model's crop mode is '{preprocess.crop_mode}' at {preprocess.crop_pct}, which "
            "is not among those that can be put into the file.",
            "Leave the option out, and prepare images as the metadata 'preprocessing' describes.",
        )


def write_onnx(
    program: Any, file: Path, description: Mapping[str, Any], inputs: Mapping[str, Sequence[str]],
    preprocess: Preprocess | None = None,
) -> None:  # fmt: skip
    """Write torch.export's program as an ONNX file, the description in its metadata; `preprocess` comes before it.

    `inputs` are the names of its inputs, and those of the first, free dimensions of each.
    """
    import onnx

    with quiet():
        converted = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=list(inputs), output_names=[OUTPUTS]
        )
        model = converted.model_proto  # type: ignore[union-attr]
    _name_dimensions(model, inputs)
    if preprocess is not None:
        model = _merged(model, preprocess)
    # Nothing of this machine: the exporter notes the file and line of each operation.
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in description.items()})
    onnx.checker.check_model(model)
    if model.ByteSize() > _LARGEST:
        raise UserError("An ONNX file cannot be larger than 2 GB.", "Use --format safetensors or torch_export.")
    file.write_bytes(model.SerializeToString(deterministic=True))


def _name_dimensions(model: Any, inputs: Mapping[str, Sequence[str]]) -> None:
    """Name the free dimensions; the exporter numbers them. That of the output is the first of the inputs'."""
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        for place, name in enumerate(inputs.get(value.name, ("batch",))):
            value.type.tensor_type.shape.dim[place].dim_param = name


def _merged(model: Any, preprocess: Preprocess) -> Any:
    import onnx

    opset = next(each.version for each in model.opset_import if not each.domain)
    before = onnx.parser.parse_model(preprocessing_text(preprocess, opset, model.ir_version))
    # The exporter keeps the names of the model's author, and `mean` is a common one.
    before = onnx.compose.add_prefix(before, "preprocess/", rename_inputs=False)
    return onnx.compose.merge_models(before, model, io_map=[("preprocess/prepared", IMAGES)])


def preprocessing_text(preprocess: Preprocess, opset: int, ir_version: int) -> str:
    """`eval_transform` and `DeviceTransform` in ONNX's text form: uint8 N x H x W x C, of any size, to float32 N x C x
    `preprocess.size`.

    As in torchvision, widths are resized first, and values are rounded to whole grey levels between the two directions.
    Unlike in the loader, JPEGs much larger than needed are not shrunk while they are decoded.
    """
    channels, (height, width) = preprocess.channels, preprocess.size
    resize = _RESIZE[preprocess.interpolation]
    return f"""
    <ir_version: {ir_version}, opset_import: ["" : {opset}]>
    preprocess (uint8[batch, H, W, {channels}] {RAW_IMAGES}) => (float[batch, {channels}, {height}, {width}] prepared)
    {{
        planes = Transpose<perm = [0, 3, 1, 2]>({RAW_IMAGES})
        values = Cast<to = {_FLOAT}>(planes)
        given = Shape<start = 2, end = 4>(values)
        one = Constant<value = int64[1] {{1}}>()
        two = Constant<value = int64[1] {{2}}>()
        {_resized_size(preprocess)}
        outer = Shape<start = 0, end = 3>(values)
        width = Slice(size, one, two)
        sizes_across = Concat<axis = 0>(outer, width)
        black = Constant<value = float {{0.0}}>()
        white = Constant<value = float {{255.0}}>()
        across = Resize<{resize}, coordinate_transformation_mode = "half_pixel">(values, , , sizes_across)
        across_rounded = Round(across)
        across_clipped = Clip(across_rounded, black, white)
        count = Shape<start = 0, end = 2>(values)
        sizes = Concat<axis = 0>(count, size)
        resized = Resize<{resize}, coordinate_transformation_mode = "half_pixel">(across_clipped, , , sizes)
        rounded = Round(resized)
        clipped = Clip(rounded, black, white)
        crop = Constant<value = int64[2] {{{height}, {width}}}>()
        spare = Sub(size, crop)
        spare_float = Cast<to = {_FLOAT}>(spare)
        half = Constant<value = float {{0.5}}>()
        offset = Mul(spare_float, half)
        offset_rounded = Round(offset)
        first = Cast<to = {_INT64}>(offset_rounded)
        behind = Add(first, crop)
        axes = Constant<value = int64[2] {{2, 3}}>()
        cut = Slice(clipped, first, behind, axes)
        mean = Constant<value = float[1, {len(preprocess.mean)}, 1, 1] {{{_scaled(preprocess.mean)}}}>()
        std = Constant<value = float[1, {len(preprocess.std)}, 1, 1] {{{_scaled(preprocess.std)}}}>()
        centred = Sub(cut, mean)
        prepared = Div(centred, std)
    }}"""


def _scaled(values: tuple[float, ...]) -> str:
    return ", ".join(f"{255 * value:.9g}" if 255 * value % 1 else f"{255 * value:.1f}" for value in values)


def _resized_size(preprocess: Preprocess) -> str:
    """As `_EvalTransform._resized`."""
    height, width = (math.floor(pixels / preprocess.crop_pct) for pixels in preprocess.size)
    if preprocess.crop_mode == "squash":
        return f"size = Constant<value = int64[2] {{{height}, {width}}}>()"
    if height == width:
        return f"""short = ReduceMin<keepdims = 1>(given)
        target = Constant<value = int64[1] {{{height}}}>()
        product = Mul(target, given)
        size = Div(product, short)"""
    return f"""given_float = Cast<to = {_FLOAT}>(given)
        target = Constant<value = float[2] {{{height}.0, {width}.0}}>()
        ratios = Div(given_float, target)
        ratio = ReduceMin<keepdims = 1>(ratios)
        exact = Div(given_float, ratio)
        whole = Round(exact)
        size = Cast<to = {_INT64}>(whole)"""
