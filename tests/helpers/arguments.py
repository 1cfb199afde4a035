"""Good and bad arguments for fuzzing, and what may come of them."""

from __future__ import annotations

import math
import re

import torch
from hypothesis import strategies as st

shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.int64, torch.float16, torch.bool])
junk = st.one_of(
    st.builds(lambda s, t: torch.ones(s, dtype=t), shapes, dtypes),
    st.builds(lambda s, v: torch.full(s, v), shapes, st.sampled_from([float("nan"), 1e38, -1e38, 5e-324, 0.0])),
    st.builds(lambda s: torch.empty(s, device="meta"), shapes),
    st.none(),
    st.integers(),
    st.text(max_size=3),
)

NUMBERS = [-1.0, 0.0, 5e-324, 1e-30, 0.5, 1, True, 3.0, 1e30, 1e308, 10**400, math.nan, math.inf, "1", b"1", 1j, None]
SIZES = [-(2**70), -1, 0, 1, 2, 3, 5, True, 2.0, 2.5, math.nan, math.inf, "2", None, [2], 2**31, 2**62, 2**70, 10**400]
any_number, any_size = st.sampled_from(NUMBERS), st.sampled_from(SIZES)
anything = st.one_of(any_number, any_size, junk)


def outcome(call, *names: str):
    """The result, or None where it is refused: by the name of one of the arguments, or for its memory."""
    message = ""
    try:
        return call()
    except MemoryError:
        return None
    except (ValueError, TypeError, IndexError, KeyError, OSError) as error:
        message = f"{type(error).__name__}: {error}"
    assert re.match(rf"\w+: ({'|'.join(map(re.escape, names))})\b", message), message
    return None
