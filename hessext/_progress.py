"""What a long run tells its user."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """A time for people to read."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
