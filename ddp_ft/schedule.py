"""Pure functions of the step: how large the learning rate is, and whether something is due."""

import math

SCHEDULES = ("constant", "cosine", "linear")


def lr_factor(step: int, total_steps: int, name: str, warmup_steps: int = 0, final_factor: float = 0.0) -> float:
    """What the base rate is multiplied by at `step` (counted from 0).

    Linear warm-up over `warmup_steps` ends at 1; then the factor falls to `final_factor` at the last step,
    along half a cosine (arXiv 1608.03983, without restarts) or a line, or stays at 1.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if name == "constant":
        return 1.0
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    remaining = 0.5 * (1 + math.cos(math.pi * progress)) if name == "cosine" else 1 - progress
    return final_factor + (1 - final_factor) * remaining


def is_due(step: int, every: int, last: int) -> bool:
    """Whether something done every `every` steps is due once `step` steps are done; always at the `last` one.

    `every` = 0 means at the last step only.
    """
    return step == last or (every > 0 and step > 0 and step % every == 0)


def epoch_of(step: int, steps_per_epoch: int) -> float:
    """Epochs passed after `step` steps: 1.5 in the middle of the second."""
    return step / steps_per_epoch
