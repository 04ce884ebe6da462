"""The forms of texts that keys may have, checked before torch is imported, which takes seconds."""

import re
from collections.abc import Sequence
from itertools import pairwise

from ddp_ft.config.overrides import parse_override
from ddp_ft.config.schema import RunConfig
from ddp_ft.config.synonyms import value_answer
from ddp_ft.errors import UserError, nearest
from ddp_ft.plugins import is_reference

LINEAR, _MLP = "linear", "mlp"
# All losses of tasks/losses.py; each task has those that fit it.
LOSSES = ("bce", "cross_entropy", "focal", "huber", "l1", "mse", "soft_f1")
_WIDEST = 2**16  # far beyond what helps; without a limit a typing error would take all memory
_HEADS = "Expected linear, mlp:WIDTH,WIDTH... such as mlp:256, or FILE.py:CLASS."


def check_forms(config: RunConfig) -> None:
    """Raise UserError for texts that are wrong whatever the data and the model are."""
    check_head(config.head.name)
    check_loss(config.loss.name)
    parse_steps(config.log.profile)
    if config.data.fold is not None:
        parse_fold(config.data.fold)
    elif config.data.folds is not None:
        hint = "Add --set data.fold=1/5 for the first of five; ddp-ft kfold trains all."
        raise UserError(
            f"data.folds = '{config.data.folds}' names a column, but not which of its folds validates.", hint
        )
    if config.schedule.name == "multistep":
        check_milestones(config.schedule.milestones)
    for pattern, values in (config.optim.overrides or {}).items():
        parse_override(pattern, values)


def check_head(name: str) -> None:
    """Raise UserError unless `head.name` has one of its three forms; a user's file is opened only later."""
    if is_mlp(name):
        mlp_widths(name)


def is_mlp(name: str) -> bool:
    """Whether `head.name`, which `check_head` has seen, is an mlp."""
    kind, _, attribute = name.rpartition(":")
    is_file = is_reference(name) and attribute.isidentifier() and kind not in (LINEAR, _MLP)
    return name != LINEAR and not is_file


def mlp_widths(name: str) -> list[int]:
    """256 and 128 for mlp:256,128."""
    kind, colon, listed = name.partition(":")
    if kind != _MLP:
        hint = f"Did you mean {name}:CLASS?" if name.endswith(".py") else nearest(kind, [LINEAR, _MLP])
        raise UserError(f"Unknown head '{name}'.", f"{hint} {_HEADS}".strip())
    widths = [int(each) if each.strip().isdecimal() else 0 for each in listed.split(",")] if colon else []
    if not widths or min(widths) < 1 or max(widths) > _WIDEST:
        raise UserError(
            f"head.name = {name} does not name the widths of the hidden layers.",
            f"Expected whole numbers from 1 to {_WIDEST}, separated by commas, such as mlp:256,128.",
        )
    return widths


def check_loss(name: str, expected: str = f"Known: {', '.join(LOSSES)}, or FILE.py:CLASS.") -> None:
    """Raise UserError for a name that no loss has; its hint ends with what is `expected`."""
    if name != "auto" and name not in LOSSES and not is_reference(name):
        own = f"Did you mean {name}:CLASS?" if name.endswith(".py") else value_answer("loss.name", name)
        hint = f"{own or nearest(name, list(LOSSES))} {expected}".strip()
        raise UserError(f"There is no loss '{name}' (--loss, loss.name).", hint)


def parse_fold(text: str) -> tuple[int, int]:
    """ "2/5" as (2, 5). Raises UserError for anything else than k/n with 1 <= k <= n and n >= 2."""
    fold, _, folds = text.replace(" ", "").partition("/")
    if not (fold.isdecimal() and folds.isdecimal() and int(folds) >= 2 and 1 <= int(fold) <= int(folds)):
        hint = "Example: 2/5 validates on the second of five parts and trains on the other four."
        raise UserError(f"data.fold = '{text}' is not k/n with a part k from 1 to n, and n of 2 or more.", hint)
    return int(fold), int(folds)


def parse_steps(text: str | None) -> range:
    """The steps that --profile traces, counted from 1 as in metrics.jsonl; none for None. UserError unless
    FIRST-LAST."""
    if text is None:
        return range(0)
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last:
        raise UserError(f"--profile {text} is no range of steps.", "Give the first and the last, such as 10-15.")
    return range(first, last + 1)


def check_milestones(milestones: Sequence[float] | None) -> None:
    """Raise UserError unless there are some, each larger than the one before."""
    hint = "They are the epochs at which the rate falls: --set schedule.milestones=[10,20]"
    if not milestones:
        raise UserError("--schedule multistep needs schedule.milestones.", hint)
    if any(later <= earlier for earlier, later in pairwise(milestones)):
        given = ", ".join(f"{milestone:g}" for milestone in milestones)
        raise UserError(f"schedule.milestones = {given}: each must be larger than the one before.", hint)
