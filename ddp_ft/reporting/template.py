"""Pages from the templates of this package.

Names of classes and files are hostile: all values are escaped.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

from ddp_ft import texts
from ddp_ft.reporting import formats
from ddp_ft.version import __version__

if TYPE_CHECKING:
    from jinja2 import Environment


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("ddp_ft.reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {name: getattr(formats, name) for name in ("brief", "duration", "number_text")}
    made.filters |= {name: getattr(texts, name) for name in ("count", "percent", "plural", "readable")}
    return made


def render(template: str, **values: Any) -> str:
    """The page, which needs neither network nor script. Characters that UTF-8 cannot hold become question marks."""
    page = _environment().get_template(template).render(version=__version__, **values)
    return page.encode("utf-8", "replace").decode("utf-8")
