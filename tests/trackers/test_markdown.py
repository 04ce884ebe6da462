"""Texts of others in TensorBoard's Markdown: shown as they are, whatever they contain."""

import warnings

import pytest

from ddp_ft.trackers.markdown import escaped, quoted


def as_html(text):
    """As TensorBoard's server makes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries that it brings along
        from tensorboard.plugin_util import markdown_to_safe_html

        return markdown_to_safe_html(text)


@pytest.mark.parametrize(
    "text, shown",
    [
        ("**bold** _and_ `code`", "**bold** _and_ `code`"),
        ("# a title\n- a list\n1. two", "# a title - a list 1. two"),
        ("[a](http://b)", "[a](http://b)"),
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("[CLS] it ' s | a \\ b & c [SEP]", "[CLS] it ' s | a \\ b &amp; c [SEP]"),
    ],
)
def test_it_is_shown_as_it_is(text, shown):
    assert as_html(escaped(text)) == f"<p>{shown}</p>"


def test_captions_are_bold_and_texts_apart():
    found = as_html(quoted(["an oak", "a_ship"], [["predicted: sea", "true: wood"], []]))
    assert found.count("<strong>") == 1 and "<strong>predicted: sea · true: wood</strong>" in found
    assert found.count("<hr>") == 1 and "<p>a_ship</p>" in found
