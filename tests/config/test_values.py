"""Values of keys: texts as they stand, whatever YAML would make of them; and what other types take."""

import pytest

from ddp_ft.config.loading import make_config, parse_assignment, read_config_file
from ddp_ft.config.schema import KEYS
from ddp_ft.errors import UserError

ODD = ["|", " ", "-", ":", "#", "~", "yes", "on", "1e3", "007", ">", "?", "*", "&", "!", "%", "@", "`", ",", "\t", "{"]
ODD += ["null", "12:30", "2020-01-01", "2020-13-45", "[", "]", "0x10", ".5", "=", "<<", "- a", "a: b", "\\t", '"']


@pytest.mark.parametrize("text", ODD)
def test_a_text_of_set_is_taken_as_it_stands(text):
    assert make_config(parse_assignment(f"data.separator={text}")).data.separator == text


@pytest.mark.parametrize("text", ["~", "yes", "on", "1e3", "007", "12:30", "2020-01-01", "2020-13-45", "0x10", "<<"])
def test_a_plain_text_of_a_file_is_taken_as_it_stands(tmp_path, text):
    (tmp_path / "c.yaml").write_text(f"data:\n  target: {text}\n  group: {text}\nloss: {{}}\nema:\n")
    data = make_config(read_config_file(tmp_path / "c.yaml")).data
    assert (data.target, data.group) == (text, None if text == "~" else text)


@pytest.mark.parametrize("text", ["|", "-", "#", "", ">", "[a]", "{a: b}", "[[a]]", "*"])
def test_a_text_of_a_file_that_yaml_takes_for_something_else_is_refused(tmp_path, text):
    (tmp_path / "c.yaml").write_text(f"data:\n  separator: {text}\n")
    with pytest.raises(UserError, match="Quote a text"):
        make_config(read_config_file(tmp_path / "c.yaml"))


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("data.separator='|'", "|"),
        ("data.separator=''", ""),
        ("model.name = timm/x", "timm/x"),
        ("data.target=[a, b]", "a,b"),
        ("loss.class_weights=[1, 2.5]", "1,2.5"),
        ("train.epochs=1e3", 1000),
        ("train.epochs=010", 10),
        ("train.epochs=3.0", 3),
        ("log.report=no", False),
        ("log.report=On", True),
        ("compute.compile=yes", "true"),
        ("compute.device=CPU", "cpu"),
        ("optim.betas=[0.9, 0.98]", (0.9, 0.98)),
        ("optim.betas=(0.9,0.98)", (0.9, 0.98)),
        ("train.max_minutes=~", None),
        ("data.group=", None),
        ("freeze.schedule={0: backbone, 2: none}", {"0": "backbone", "2": "none"}),
        ("optim.overrides={on: {lr_scale: 2, weight_decay: 1e-3}}", {"on": {"lr_scale": 2, "weight_decay": "1e-3"}}),
        ("optim.options={when: 2020-13-45}", {"when": "2020-13-45"}),
    ],
)
def test_values(assignment, value):
    [path] = parse_assignment(assignment)
    found = make_config(parse_assignment(assignment))
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value


MAPPINGS = [path for path, key in KEYS.items() if key.type is dict]
LISTS = [path for path, key in KEYS.items() if key.type is tuple]


@pytest.mark.parametrize("path", [*MAPPINGS, *LISTS])
@pytest.mark.parametrize(
    "text", ["{0: backbone", "[0.9, 0.98", "{[1]: 2}", "{a: 1, a: 2}", "&a {b: *a}", "x", "[", "{"]
)
def test_what_is_no_mapping_or_list_is_one_message(path, text):
    with pytest.raises(UserError, match=f"{path} = .* is not a (mapping|list)") as caught:
        make_config(parse_assignment(f"{path}={text}"))
    assert f", or {KEYS[path].null or 'none'}." in caught.value.message


def test_a_name_that_a_file_gives_twice_is_refused(tmp_path):
    for content in ("seed: 1\nseed: 2\n", "optim.lr: 1\noptim: {lr: 2}\n"):
        (tmp_path / "c.yaml").write_text(content)
        with pytest.raises(UserError, match="twice"):
            make_config(read_config_file(tmp_path / "c.yaml"))
    (tmp_path / "c.yaml").write_text("optim: &a {lr: 1}\nhead: {dropout: 0.1}\n")
    assert make_config(read_config_file(tmp_path / "c.yaml")).optim.lr == 1
