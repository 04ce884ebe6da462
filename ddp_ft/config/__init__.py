"""The configuration of a run: `schema` says what there is, `values` reads and writes it. Free of torch."""

from ddp_ft.config.keys import LENGTH, MACHINE, RECIPE, Key
from ddp_ft.config.loading import (
    asks_for_measuring,
    find_key,
    is_open,
    make_config,
    parse_assignment,
    parse_value,
    read_config_file,
    read_recipe,
    to_flat,
    to_yaml,
)
from ddp_ft.config.schema import (
    KEYS,
    AugmentConfig,
    DataConfig,
    HeadConfig,
    LossConfig,
    OptimConfig,
    RunConfig,
    ScheduleConfig,
)

__all__ = [
    "KEYS",
    "LENGTH",
    "MACHINE",
    "RECIPE",
    "AugmentConfig",
    "DataConfig",
    "HeadConfig",
    "Key",
    "LossConfig",
    "OptimConfig",
    "RunConfig",
    "ScheduleConfig",
    "asks_for_measuring",
    "find_key",
    "is_open",
    "make_config",
    "parse_assignment",
    "parse_value",
    "read_config_file",
    "read_recipe",
    "to_flat",
    "to_yaml",
]
