"""The kinds of targets by name, as in `Schema.kind`. A new one is a module beside this one and a line here."""

from ddp_ft.data.targets.base import TargetKind
from ddp_ft.data.targets.labels import Labels
from ddp_ft.data.targets.numbers import Numbers
from ddp_ft.data.targets.one_class import OneClass
from ddp_ft.data.targets.tags import Tags

# In the order in which they are asked what a table's columns look like; one class takes what none before it took.
KINDS: dict[str, TargetKind] = {kind.name: kind for kind in (Tags(), Labels(), Numbers(), OneClass())}
