"""The mistakes that can be found before torch is imported, which takes seconds."""

from ddp_ft.config.forms import check_forms
from ddp_ft.config.schema import RunConfig
from ddp_ft.trackers.services.registry import service_names


def check_early(config: RunConfig) -> None:
    """Raise UserError for texts in keys, trackers and columns of a table that cannot be."""
    from ddp_ft.data.sources.table_columns import check_columns  # and with it numpy

    check_forms(config)
    service_names(config.log.trackers)
    check_columns(config.data)
