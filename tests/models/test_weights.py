"""What a weights file may look like, what of it is loaded, and which files are refused."""

import argparse
import datetime
import enum
import json
import pickle
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ddp_ft.contracts import BuiltModel, LoadReport
from ddp_ft.errors import UserError
from ddp_ft.models import build_model, create_from_spec, fetch, load_weights
from ddp_ft.models.introspection import parameters_on_meta

NAME = "timm/resnet10t"
HEAD = ("fc.weight", "fc.bias")
State = dict[str, Tensor]


class Config(dict):  # type: ignore[type-arg]
    """As training scripts keep their settings, and sometimes their state."""


def _noisy_state(name: str = NAME, outputs: int = 5) -> State:
    """A state in which every tensor differs from that of any fresh model."""
    torch.manual_seed(11)
    state = build_model(name, outputs).module.state_dict()
    return {
        key: tensor + torch.rand_like(tensor) if tensor.is_floating_point() else tensor + 9
        for key, tensor in state.items()
    }


@pytest.fixture(scope="module")
def state() -> State:
    return _noisy_state()


def _equal(built: BuiltModel, state: State, names: tuple[str, ...]) -> bool:
    own = built.module.state_dict()
    return all(torch.equal(own[name], state[name]) for name in names)


def _refused(built: BuiltModel, weights: Path | str, name: str = NAME) -> UserError:
    before = {key: tensor.clone() for key, tensor in built.module.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_weights(built, name, str(weights))
    assert "\n" not in caught.value.message and "Traceback" not in str(caught.value)
    assert _equal(built, before, tuple(before)), "a refused file must not touch the model"
    return caught.value


def _save_safetensors(state: State, file: Path) -> Path:
    save_file(state, file.with_suffix(".safetensors"))
    return file.with_suffix(".safetensors")


def _saver(wrap: Callable[[State], object], suffix: str = ".pth") -> Callable[[State, Path], Path]:
    def save(state: State, file: Path) -> Path:
        torch.save(wrap(state), file.with_suffix(suffix))
        return file.with_suffix(suffix)

    return save


def _prefixed(prefix: str) -> Callable[[State], object]:
    return lambda state: {f"{prefix}{key}": tensor for key, tensor in state.items()}


def _other_than(state: State) -> State:
    return {key: torch.zeros_like(tensor) for key, tensor in state.items()}


def _sharded(state: State, file: Path) -> Path:
    """As transformers saves large models, each tensor in one of two files."""
    parts = {f"model-0000{number}-of-00002.safetensors": list(state)[number - 1 :: 2] for number in (1, 2)}
    for name, keys in parts.items():
        save_file({key: state[key] for key in keys}, file.with_name(name))
    index = file.with_name("model.safetensors.index.json")
    index.write_text(json.dumps({"weight_map": {key: name for name, keys in parts.items() for key in keys}}))
    return index


def _in_a_folder(state: State, file: Path) -> Path:
    torch.save(state, file.with_name("pytorch_model.bin"))
    return file.parent


@pytest.mark.parametrize(
    "save",
    [
        pytest.param(_save_safetensors, id="safetensors"),
        pytest.param(_saver(lambda state: state), id="pth"),
        pytest.param(_saver(OrderedDict, ".pth.tar"), id="tar"),
        pytest.param(_saver(lambda state: {"state_dict": state, "epoch": 3}, ".pt"), id="state_dict"),
        pytest.param(_saver(lambda state: {"model": state, "lr": 0.1}, ".bin"), id="model"),
        pytest.param(
            _saver(lambda state: {"state_dict": _other_than(state), "state_dict_ema": state}), id="state_dict_ema"
        ),
        pytest.param(_saver(lambda state: {"model": _other_than(state), "model_ema": state}), id="model_ema"),
        pytest.param(_saver(lambda state: {"model": {"state_dict": state}}), id="nested-twice"),
        pytest.param(_saver(lambda state: {"model": state, "args": argparse.Namespace(lr=0.1)}), id="with-options"),
        pytest.param(_saver(_prefixed("module.")), id="ddp"),
        pytest.param(_saver(_prefixed("_orig_mod.")), id="compiled"),
        pytest.param(_saver(_prefixed("model.")), id="wrapped"),
        pytest.param(_saver(_prefixed("module._orig_mod.model.")), id="all-prefixes"),
        pytest.param(_saver(lambda state: {"model": _prefixed("module.")(state)}), id="nested-and-prefixed"),
        pytest.param(_saver(lambda state: state, ".CKPT"), id="upper-case"),
        pytest.param(_saver(lambda state: state, ".pyth"), id="pyth"),
        pytest.param(_saver(lambda state: state, ""), id="no-suffix"),
        pytest.param(_sharded, id="shards"),
        pytest.param(_in_a_folder, id="folder"),
    ],
)
def test_file_is_loaded_whole(save: Callable[[State, Path], Path], state: State, tmp_path: Path) -> None:
    built = build_model(NAME, 5)
    file = save(state, tmp_path / "weights")
    report = load_weights(built, NAME, str(file))
    assert set(report.loaded) == set(state) and report.source.startswith(str(file))
    assert (report.skipped, report.missing, report.unexpected) == ((), (), ())
    assert _equal(built, state, report.loaded)


# Of a net of two layers, which takes no time: its names are "body.weight", "body.bias", "head.weight", "head.bias".
SMALL = """class Small(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, num_classes)
    def forward(self, images):
        return self.head(self.body(images).mean((2, 3)))
def make(num_classes):
    return Small(num_classes)"""


class Mode(enum.Enum):
    """An object of a training script."""

    A = "a"


def _small(factory_file: Callable[[str], str]) -> tuple[str, State]:
    name = factory_file(SMALL)
    return name, {key: torch.randn_like(t) for key, t in build_model(name, 3).module.state_dict().items()}


def _load_small(name: str, content: object, file: Path, state: State) -> LoadReport:
    torch.save(content, file)
    built = build_model(name, 3)
    report = load_weights(built, name, str(file))
    assert set(report.loaded) == set(state) and _equal(built, state, report.loaded), str(report)
    return report


@pytest.mark.parametrize(
    "prefix",
    [
        "backbone.", "net.", "timm_model.", "encoder.trunk.", "module.backbone.", "_orig_mod.module.model.",
        "model._orig_mod.net.", "model.module.student.backbone.",
    ],
)  # fmt: skip
def test_prefixes_are_found_by_looking(prefix: str, factory_file: Callable[[str], str], tmp_path: Path) -> None:
    name, state = _small(factory_file)
    others = {"queue": torch.zeros(2), f"{prefix}projector.weight": torch.zeros(9, 9)}
    content = {**{f"{prefix}{key}": tensor for key, tensor in state.items()}, **others}
    report = _load_small(name, {"state_dict": content}, tmp_path / "w.ckpt", state)
    assert f"without the prefix '{prefix}'" in str(report) and "read from 'state_dict'" in str(report)


def test_a_head_beside_its_backbone_and_under_another_name(factory_file: Callable[[str], str], tmp_path: Path) -> None:
    name, state = _small(factory_file)
    renamed = {f"module.{key.replace('body', 'net.body').replace('head', 'fc')}": each for key, each in state.items()}
    report = _load_small(name, renamed, tmp_path / "w.pth", state)
    assert "its head is fc.weight, fc.bias" in str(report) and "without the prefix 'module.net.'" in str(report)
    unclear = {**renamed, "module.classifier.weight": torch.zeros_like(state["head.weight"])}
    torch.save(unclear, tmp_path / "w.pth")
    assert load_weights(build_model(name, 3), name, str(tmp_path / "w.pth")).missing == ("head.weight", "head.bias")


def test_a_prefix_that_the_file_lacks(factory_file: Callable[[str], str], tmp_path: Path) -> None:
    name = factory_file(f"{SMALL.replace('def make', 'def inner')}\ndef make(num_classes):\n    outer = nn.Module()\n"
                        "    outer.model = inner(num_classes)\n    return outer")  # fmt: skip
    state = {key: torch.randn_like(t) for key, t in build_model(name, 3).module.state_dict().items()}
    bare = {key.removeprefix("model."): tensor for key, tensor in state.items()}
    assert "with the prefix 'model.'" in str(_load_small(name, bare, tmp_path / "w.pth", state))


@pytest.mark.parametrize("place", ["teacher", "net", "module", "ema", "model_state", "a.b.state_dict", "swa_model"])
def test_states_are_found_where_they_are(place: str, factory_file: Callable[[str], str], tmp_path: Path) -> None:
    """Also beside the state of an optimizer and worse weights."""
    name, state = _small(factory_file)
    content: object = state
    for part in reversed(place.split(".")):
        content = {part: content}
    assert isinstance(content, dict)
    worse = {"student": _other_than(state)} if place in ("teacher", "ema", "swa_model") else {}
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}], "slow": _other_than(state)}
    report = _load_small(name, {**worse, "optimizer": optimizer, **content}, tmp_path / "w.pth", state)
    assert f"read from '{place}'" in str(report)


@pytest.mark.parametrize("legacy", [False, True])
def test_objects_beside_the_tensors_are_skipped_and_named(
    legacy: bool, factory_file: Callable[[str], str], tmp_path: Path
) -> None:
    name, state = _small(factory_file)
    objects = {
        "epoch": np.int64(3), "accuracy": np.float32(0.5), "path": tmp_path, "mode": Mode.A,
        "when": datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc), "callback": json.dumps,
    }  # fmt: skip
    file = tmp_path / "w.ckpt"
    torch.save({**objects, "state_dict": state}, file, _use_new_zipfile_serialization=not legacy)
    built = build_model(name, 3)
    report = load_weights(built, name, str(file))
    assert _equal(built, state, tuple(state)) and "skipped objects: " in str(report)


@pytest.mark.parametrize("legacy", [False, True])
def test_states_in_mappings_of_other_classes(legacy: bool, factory_file: Callable[[str], str], tmp_path: Path) -> None:
    name, state = _small(factory_file)
    content = {"hyper": defaultdict(list, a=[1]), "model": Config(state, beside=Config(a=1))}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    built = build_model(name, 3)
    report = load_weights(built, name, str(tmp_path / "w.pth"))
    assert _equal(built, state, tuple(state)) and "read from 'model'" in str(report)


def test_names_within_which_wrappers_of_layers_are(factory_file: Callable[[str], str], tmp_path: Path) -> None:
    name, state = _small(factory_file)
    wrapped = {name.replace(".", "._orig_mod._checkpoint_wrapped_module.", 1): each for name, each in state.items()}
    wrapped = {f"module.{name}": each for name, each in wrapped.items()}
    report = str(_load_small(name, wrapped, tmp_path / "w.pth", state))
    assert "without the prefix 'module.'" in report and "_checkpoint_wrapped_module, _orig_mod within" in report


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantised_weights_are_what_they_stand_for(factory_file: Callable[[str], str], tmp_path: Path) -> None:
    name, state = _small(factory_file)
    quantised = {name: torch.quantize_per_tensor(each, 0.1, 0, torch.qint8) for name, each in state.items()}
    _load_small(name, quantised, tmp_path / "w.pth", {name: each.dequantize() for name, each in quantised.items()})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda each: each.to("meta"), "without numbers"),
        (lambda each: each.to(torch.int8), "int8 where the model has weights"),
        (lambda each: each.to(torch.complex64), "complex64 where the model has weights"),
        (lambda each: each / 0, "not finite in 4 tensors"),
        (lambda each: each.half() * float("nan"), "not finite in 4 tensors"),
    ],
)
def test_tensors_that_are_no_weights(
    change: Callable[[Tensor], Tensor], said: str, factory_file: Callable[[str], str], tmp_path: Path
) -> None:
    name, state = _small(factory_file)
    torch.save({name: change(each) for name, each in state.items()}, tmp_path / "w.pth")
    assert said in _refused(build_model(name, 3), tmp_path / "w.pth", name).message


def test_the_keys_of_a_file_that_does_not_fit_are_listed(factory_file: Callable[[str], str], tmp_path: Path) -> None:
    name, _ = _small(factory_file)
    torch.save({"epoch": 3, "generator": {"w": torch.ones(2)}}, tmp_path / "w.pth")
    assert "epoch, generator" in str(_refused(build_model(name, 3), tmp_path / "w.pth", name))
    torch.save({"epoch": 3, "note": "none"}, tmp_path / "w.pth")
    assert "It has: epoch, note" in str(_refused(build_model(name, 3), tmp_path / "w.pth", name))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"w": "../other.safetensors"}}')
    assert "other.safetensors, which is not there" in str(_refused(build_model(name, 3), tmp_path, name))


def test_prefix_that_belongs_to_the_model_stays(factory_file: Callable[[str], str], tmp_path: Path) -> None:
    body = """def make(num_classes):
    outer = nn.Module()
    outer.model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, num_classes))
    return outer"""
    name = factory_file(body)
    state = {key: torch.randn_like(t) for key, t in build_model(name, 5).module.state_dict().items()}
    assert all(key.startswith("model.") for key in state)
    report = load_weights(build_model(name, 5), name, str(_save_safetensors(state, tmp_path / "own")))
    assert len(report.loaded) == 4


def test_half_precision_file_is_loaded_in_the_models_precision(state: State, tmp_path: Path) -> None:
    file = _save_safetensors({k: t.half() if t.is_floating_point() else t for k, t in state.items()}, tmp_path / "w")
    built = build_model(NAME, 5)
    load_weights(built, NAME, str(file))
    assert torch.equal(built.module.state_dict()["fc.bias"], state["fc.bias"].half().float())


def test_head_of_another_size_is_skipped_and_counted(state: State, tmp_path: Path) -> None:
    built = build_model(NAME, 3)
    fresh = {name: built.module.state_dict()[name].clone() for name in HEAD}
    extra = state | {"aux.weight": torch.ones(2)}
    del extra["bn1.bias"]
    report = load_weights(built, NAME, str(_save_safetensors(extra, tmp_path / "weights")))
    assert set(report.skipped) == set(HEAD)
    assert (report.missing, report.unexpected) == (("bn1.bias",), ("aux.weight",))
    assert len(report.loaded) == len(state) - 3
    assert _equal(built, state, report.loaded) and _equal(built, fresh, HEAD)
    assert "2 skipped (other size), 1 missing, 1 unexpected" in str(report)


def test_none_loads_nothing() -> None:
    built = build_model(NAME, 3)
    assert str(load_weights(built, NAME, "none")) == "random initial weights"


@pytest.mark.parametrize("inside", ["best/model.safetensors", "model.safetensors"])
def test_run_folder_and_its_best(inside: str, state: State, tmp_path: Path) -> None:
    file = tmp_path / inside
    file.parent.mkdir(exist_ok=True)
    save_file(state, file)
    report = load_weights(build_model(NAME, 5), NAME, str(tmp_path))
    assert report.source == str(file) and len(report.loaded) == len(state)


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    assert "no best/model.safetensors" in _refused(build_model(NAME, 5), tmp_path).message


@pytest.mark.parametrize(
    ("given", "expected", "said"),
    [
        ("timm/resnet50", "timm/resnet18", "differ in size"),
        ("timm/resnet18", "timm/resnet50", "differ in size"),
        ("timm/mobilenetv3_small_050", "timm/resnet10t", "1 match"),
        ("torchvision/resnet18", "timm/vit_tiny_patch16_224", "0 match"),
    ],
)
def test_other_architecture_is_refused(given: str, expected: str, said: str, tmp_path: Path) -> None:
    file = _save_safetensors(dict(create_from_spec(build_model(given, 5).spec).state_dict()), tmp_path / "other")
    error = _refused(build_model(expected, 5), file, expected)
    assert "another architecture" in error.message and said in error.message
    assert "--weights none" in error.hint


def test_less_than_half_of_the_body_is_refused(state: State, tmp_path: Path) -> None:
    body = [name for name in state if name not in HEAD]
    half = {name: state[name] for name in body[: len(body) // 2 + 1]}
    less = {name: state[name] for name in body[: len(body) // 2 - 1]}
    report = load_weights(build_model(NAME, 5), NAME, str(_save_safetensors(half, tmp_path / "half")))
    assert len(report.loaded) == len(half)
    assert "another architecture" in _refused(build_model(NAME, 5), _save_safetensors(less, tmp_path / "l")).message


class _Payload:
    ran = False

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return setattr, (_Payload, "ran", True)  # type: ignore[return-value]


@pytest.mark.parametrize("legacy", [False, True])
def test_payload_is_neither_loaded_nor_run(legacy: bool, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save({"model": _Payload()}, file, _use_new_zipfile_serialization=not legacy)
    assert "could run foreign code" in _refused(build_model(NAME, 5), file).message
    assert not _Payload.ran


def test_whole_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 3), tmp_path / "weights.pt")
    assert "could run foreign code" in _refused(build_model(NAME, 5), tmp_path / "weights.pt").message


def _cut(save: Callable[[State, Path], Path]) -> Callable[[State, Path], Path]:
    def cut(state: State, file: Path) -> Path:
        whole = save(state, file)
        whole.write_bytes(whole.read_bytes()[:-5000])
        return whole

    return cut


def _save_npz(state: State, file: Path) -> Path:
    np.savez(file.with_suffix(".npz"), **{name: tensor.numpy() for name, tensor in state.items()})
    return file.with_suffix(".npz")


def _writer(content: bytes, suffix: str) -> Callable[[State, Path], Path]:
    def write(state: State, file: Path) -> Path:
        file.with_suffix(suffix).write_bytes(content)
        return file.with_suffix(suffix)

    return write


@pytest.mark.parametrize(
    ("make", "said"),
    [
        pytest.param(_cut(_save_safetensors), "cannot be read as weights", id="cut-safetensors"),
        pytest.param(_cut(_saver(lambda state: state)), "its archive is cut short", id="cut-pth"),
        pytest.param(_writer(b"", ".safetensors"), "is empty", id="empty-safetensors"),
        pytest.param(_writer(b"", ".pth"), "is empty", id="empty-pth"),
        pytest.param(_writer(b"<html>404</html>", ".pth"), "it is a web page", id="html-pth"),
        pytest.param(_writer(b"hello\nthere", ".pth"), "it is text", id="text"),
        pytest.param(_writer(bytes(range(101, 130)), ".pth"), "it is not what torch.save writes", id="junk"),
        pytest.param(_writer(b"version https://git-lfs.github.com/spec/v1", ".pt"), "pointer of Git LFS", id="lfs"),
        pytest.param(_writer(b"<html>404</html>", ".safetensors"), "cannot be read as weights", id="html-st"),
        pytest.param(_writer(pickle.dumps({"epoch": 3}), ".pth"), "cannot be read|no tensors", id="pickle"),
        pytest.param(_saver(lambda state: {"epoch": 3}), "holds no tensors by name", id="no-tensors"),
        pytest.param(_saver(lambda state: torch.ones(3)), "holds no tensors by name", id="one-tensor"),
        pytest.param(_writer(b"\x89HDF\r\n", ".h5"), "it is an HDF5 file", id="suffix"),
        pytest.param(_save_npz, "such as NumPy's .npz", id="npz"),
    ],
)
def test_file_that_is_no_weights_is_refused(
    make: Callable[[State, Path], Path], said: str, state: State, tmp_path: Path
) -> None:
    error = _refused(build_model(NAME, 5), make(state, tmp_path / "weights"))
    assert any(part in error.message for part in said.split("|")), error.message
    assert "weights_only" not in str(error)


def test_missing_file_is_refused() -> None:
    assert "no such file" in _refused(build_model(NAME, 5), "nowhere/weights.pth").message
    assert "Did you mean pretrained?" in _refused(build_model(NAME, 5), "pretraned").hint


@pytest.mark.parametrize("name", ["timm/resnet10t", "timm/gcvit_xxtiny", "torchvision/resnet18"])
def test_without_a_network_pretrained_fails_soon(
    name: str, torch_home: Path, hub_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A proxy that refuses at once replaces the network, so that the test is the same with and without one.
    for variable in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    built = build_model(name, 5)
    started = time.monotonic()
    error = _refused(built, "pretrained", name)
    assert time.monotonic() - started < 5
    assert "--weights FILE" in error.hint and f"ddp-ft fetch {name}" in error.hint
    with pytest.raises(UserError, match="could not be fetched: no connection to"):
        fetch(name)


@pytest.mark.parametrize("name", ["timm/coatnet_0_224", "own"])
def test_model_without_pretrained_weights_says_so(name: str, factory_file: Callable[[str], str]) -> None:
    name = factory_file("def make(num_classes):\n    return nn.Linear(3, num_classes)") if name == "own" else name
    with parameters_on_meta():
        built = build_model(name, 5)
    with pytest.raises(UserError, match="--weights none"):
        load_weights(built, name, "pretrained")


def test_best_model_in_plain_timm(state: State, tmp_path: Path) -> None:
    built = build_model("timm/vit_tiny_patch16_224", 5, image_size=64)
    save_file(built.module.state_dict(), tmp_path / "model.safetensors")
    spec = dict(built.spec)
    plain = timm.create_model(spec["name"], **spec["arguments"])
    plain.load_state_dict(load_file(tmp_path / "model.safetensors"))
    images = torch.rand(2, 3, *built.processor.preprocess.size)
    with torch.no_grad():
        assert torch.equal(plain.eval()(images), built.module.eval()(images))
