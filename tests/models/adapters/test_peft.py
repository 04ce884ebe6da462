"""The same files as peft's, where peft is installed: what it loads of ours computes the same, and the reverse."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ddp_ft.models import build_model, create_from_spec
from ddp_ft.models.adapter_names import is_adapter
from ddp_ft.models.adapters.peft_files import CONFIG, TENSORS, own_tensors, peft_config, peft_names, peft_tensors
from tests.models.adapters.nets import IMAGES, adapted, around, moved, of_library
from tests.models.adapters.test_layers import HEAD, Everything
from tests.support.marks import slowly
from tests.support.runs import train_on
from tests.support.texts import write_encoder, write_lines

peft = pytest.importorskip("peft")
# Of transformers 5 to peft, which asks it by an older name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

FORMS = [{}, {"rslora": True, "alpha": 3}, {"dora": True}]
CASES = [
    *(("timm/test_vit", form) for form in FORMS),
    *(("timm/test_efficientnet", {**form, "targets": "conv_pw|conv_exp|conv_stem"}) for form in FORMS),
    *slowly(("torchvision/vit_b_16", {}), ("torchvision/resnet18", {"targets": "layer1"})),
]
WORDS = torch.tensor([[2, 9, 10, 11, 3], [2, 5, 6, 7, 3]])


def images_for(built):
    return torch.nn.functional.interpolate(IMAGES, built.processor.preprocess.size)


def plain_of(built):
    """The library's network without the adapter: the base that peft starts from."""
    plain = create_from_spec(built.spec).eval()
    own = {name: tensor for name, tensor in built.module.state_dict().items() if not is_adapter(name)}
    plain.load_state_dict(own)
    return plain


def without_head(built, plain):
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if name in built.head:
                parameter.zero_()
    return plain


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_peft_loads_ours(tmp_path, name, settings):
    built = moved(of_library(name, **settings))
    write(built, tmp_path)
    theirs = peft.PeftModel.from_pretrained(without_head(built, plain_of(built)), tmp_path).eval()
    with torch.no_grad():
        values, expected = images_for(built), built.module(images_for(built))
        torch.testing.assert_close(theirs(values), expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(theirs.merge_and_unload()(values), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_ours_loads_what_peft_wrote(tmp_path, name, settings):
    if name == "torchvision/vit_b_16":
        pytest.skip("peft has an adapter on attention's output projection too, which it counts twice")
    built = of_library(name, **settings)
    given = {key: value for key, value in peft_config(built, None).items() if key != "peft_type"}
    theirs = peft.get_peft_model(plain_of(built), peft.LoraConfig(**{**given, "inference_mode": False})).eval()
    torch.manual_seed(6)
    with torch.no_grad():
        for each in theirs.parameters():
            if each.requires_grad:
                each.add_(torch.randn_like(each) * 0.1)
    theirs.save_pretrained(tmp_path)
    stored = load_file(tmp_path / Path(TENSORS).name)
    assert set(stored) == set(peft_names(built).values())
    built.module.load_state_dict({**built.module.state_dict(), **own_tensors(built, stored)})
    with torch.no_grad():
        values = images_for(built)
        torch.testing.assert_close(built.module(values), theirs(values), atol=1e-4, rtol=1e-4)
    wrote = json.loads((tmp_path / Path(CONFIG).name).read_text())
    assert {key: wrote[key] for key in ("r", "lora_alpha", "use_dora", "use_rslora")} == {
        key: given[key] for key in ("r", "lora_alpha", "use_dora", "use_rslora")
    }


@pytest.mark.parametrize("settings", FORMS)
def test_an_encoder_of_transformers(tmp_path, settings):
    from transformers import AutoModelForSequenceClassification

    name = f"transformers/{write_encoder(tmp_path / 'bert')}"
    torch.manual_seed(0)
    built = moved(adapted(build_model(name, 3, weights="none"), 0, **settings))
    base = plain_of(built)
    base.save_pretrained(tmp_path / "base")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    write(built, tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(without_head(built, again), tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = built.module(input_ids=WORDS).logits
        torch.testing.assert_close(theirs(input_ids=WORDS).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("settings", FORMS)
def test_layers_of_every_kind(tmp_path, settings):
    """Of torch, and transformers' Conv1D, in one network."""
    torch.manual_seed(0)
    built = moved(around(Everything(), HEAD, targets=".", **settings))
    plain = Everything().eval()
    plain.load_state_dict({name: each for name, each in built.module.state_dict().items() if not is_adapter(name)})
    write(built, tmp_path)
    theirs = peft.PeftModel.from_pretrained(without_head(built, plain), tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(IMAGES), built.module(IMAGES), atol=1e-4, rtol=1e-4)


def test_a_run_of_texts(tmp_path):
    from transformers import AutoModelForSequenceClassification

    encoder, data, run = write_encoder(tmp_path / "bert"), write_lines(tmp_path / "lines.jsonl"), tmp_path / "run"
    words = ["--model", f"transformers/{encoder}", "--weights", "pretrained", "--adapter", "lora", "--lr", 0.01]
    train_on(1, data, run, *words, "--set", "model.image_size=auto", epochs=2)
    merged, base = (
        AutoModelForSequenceClassification.from_pretrained(each, num_labels=3) for each in (run / "best", encoder)
    )
    theirs = peft.PeftModel.from_pretrained(base, run / "best/adapter").eval()
    with torch.no_grad():
        expected = merged(input_ids=WORDS).logits
        torch.testing.assert_close(theirs(input_ids=WORDS).logits, expected, atol=1e-5, rtol=1e-5)
        theirs.disable_adapter_layers()
        assert (theirs(input_ids=WORDS).logits - expected).abs().max() > 1e-3


def write(built, folder):
    folder.mkdir(exist_ok=True)
    (folder / Path(CONFIG).name).write_text(json.dumps(peft_config(built, None)))
    save_file(peft_tensors(built, built.module.state_dict()), folder / Path(TENSORS).name)
