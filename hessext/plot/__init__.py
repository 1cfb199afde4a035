"""Pictures: |H| as a heat map with block borders, the map of block norms, curves of a sweep. Needs matplotlib."""

from ._curves import ratios
from ._maps import block_norm_map, heat_map, pool, share_scale
from ._matplotlib import check_matplotlib

__all__ = ["block_norm_map", "check_matplotlib", "heat_map", "pool", "ratios", "share_scale"]
