"""What a long run tells its user."""

from __future__ import annotations

import torch.distributed as dist


def shown(wanted: bool) -> bool:
    """Whether this process tells it: of the ranks of torch.distributed, the first one alone."""
    return wanted and not (dist.is_available() and dist.is_initialized() and dist.get_rank())


def duration(seconds: float) -> str:
    """A time for people to read."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
