"""The names of words' tags: O, or a place in an entity and its type. Free of torch."""

import re

OUTSIDE = "O"
# Places: begin, inside, end, and single for an entity of one word (IOB2 has the first two).
TAG = re.compile(r"O|[BIES]-.+")


def type_of(tag: str) -> str:
    """The type of the entity; "" of words outside."""
    return tag[2:]
