"""Tables as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def aligned(lines: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of a table whose first column is set to the left and all others to the right."""
    first, *others = (max(map(len, column)) for column in zip(*lines, strict=True))
    for name, *texts in lines:
        yield "  ".join([name.ljust(first), *(text.rjust(n) for text, n in zip(texts, others, strict=True))])
