"""Numbers and nouns as text: for messages, tables, reports and charts."""


def count(number: float) -> str:
    """A whole number with its thousands set apart."""
    return f"{number:,.0f}"


def plural(number: int, one: str, many: str = "") -> str:
    """A number and the noun that fits it: "1 epoch", "2 classes"."""
    return f"{count(number)} {one if number == 1 else many or one + 's'}"


def sample_noun(kind: str) -> str:
    """What samples of that kind of input are called."""
    return kind if kind in ("image", "text") else "sample"


def readable(number: float, digits: int = 4) -> str:
    """A number that people read: whole from 1,000 on, else with that many significant digits; no exponent between 1e-4
    and 1e15."""
    text = f"{number:.{digits}g}"
    return count(number) if 1000 <= abs(float(text)) < 1e15 else text


def metric_figure(value: float) -> str:
    """A metric in a column of metrics: with four decimals, so that points are below each other, unless it is too small
    or too large for them."""
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1000 else readable(value)


def percent(share: float, digits: int = 0) -> str:
    """A share from 0 to 1 in percent."""
    return f"{share * 100:.{digits}f} %"
