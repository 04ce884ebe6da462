"""Bytes as text: UTF-8, with or without a byte order mark. Free of torch."""

# Other encodings, by how their files begin.
_MARKS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


class OtherEncodingError(ValueError):
    """Bytes that are not UTF-8; the message says what they are, if that is known, and how to convert them."""


def decoded(content: bytes) -> str:
    """The text of these bytes, its line ends as "\\n". Raises OtherEncodingError."""
    if mark := next((mark for mark in _MARKS if content.startswith(mark)), None):
        raise OtherEncodingError(f"it is {_MARKS[mark]}, not UTF-8 (iconv -f {_MARKS[mark]} -t UTF-8 converts it)")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        where = f"byte 0x{content[error.start]:02X} in line {line}"
        raise OtherEncodingError(f"it is not UTF-8: {where} (iconv -f WINDOWS-1252 -t UTF-8, if it is that)") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")
