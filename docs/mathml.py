"""Formulas become MathML when the site is built: browsers draw them without a script from elsewhere."""

import html
import re

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.S)


def on_page_content(content: str, **_: object) -> str:
    """Replace what pymdownx.arithmatex marked."""
    return _FORMULA.sub(
        lambda m: convert(html.unescape(m[2]), display={"span": "inline", "div": "block"}[m[1]]), content
    )
