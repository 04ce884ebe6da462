"""Which learning rates have curves of their own."""

from ddp_ft.trackers.services.curves import few_rates


def test_of_many_groups_three_rates_are_shown():
    rates = {f"lr/layer_{n}": 0.1**n for n in range(6)}
    same = {f"{name}_no_decay": rate for name, rate in rates.items()}
    assert few_rates({"loss": 1.0, **rates, **same}) == {
        "lr/largest": 1.0, "lr/median": rates["lr/layer_2"], "lr/smallest": rates["lr/layer_5"],
    }  # fmt: skip


def test_groups_of_one_rate_share_a_curve():
    row = {"lr/head": 0.1, "lr/head_no_decay": 0.1, "lr/body_no_decay": 0.2, "lr/x": 0.3, "lr/x_no_decay": 0.4}
    assert list(few_rates(row)) == ["lr/head", "lr/body_no_decay", "lr/x", "lr/x_no_decay"]
