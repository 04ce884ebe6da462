"""The mistakes that can be found before torch is imported, which takes seconds."""

from ddp_ft.config.forms import check_forms
from ddp_ft.config.schema import RunConfig
from ddp_ft.errors import UserError
from ddp_ft.trackers.services.registry import service_names

EXAMPLE = """Example:
  ddp-ft train --data ~/pets --model timm/convnext_tiny.in12k_ft_in1k
  torchrun --nproc_per_node=4 -m ddp_ft.train --data ~/pets --model timm/convnext_tiny.in12k_ft_in1k
where ~/pets holds one folder of images for each class. No data at hand? ./launch/demo.sh runs a complete demo."""


def check_early(config: RunConfig) -> None:
    """Raise UserError for texts in keys, trackers and columns of a table that cannot be, and without data or model."""
    check_texts(config)
    missing = [flag for flag, value in (("--data", config.data.path), ("--model", config.model.name)) if not value]
    if missing:
        raise UserError(f"{' and '.join(missing)} must be given.", EXAMPLE)
    from ddp_ft.data.sources.table_columns import check_columns  # and with it numpy

    check_columns(config.data)


def check_texts(config: RunConfig) -> None:
    """Raise UserError for texts in keys, and trackers, that are wrong whatever the data and the model are."""
    check_forms(config)
    service_names(config.log.trackers)
