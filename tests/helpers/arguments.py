"""Good and bad arguments for fuzzing, and what may come of them."""

from __future__ import annotations

import math
import re

from hypothesis import strategies as st
from test_fuzz import junk

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
