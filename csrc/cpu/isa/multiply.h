// Register tiles: products of packed panels.
#pragma once

#include "vectors.h"

namespace hessext::cpu {
namespace {

// One register tile: panel_rows x panel_cols sums over a chunk, added to the tile.
template <class T>
void multiply_registers(i64 depth, const T* left, const T* right, T* tile, i64 ld) {
    for (int r = 0; r < panel_rows; ++r) {  // needed at the end
        __builtin_prefetch(tile + r * ld, 1);
        __builtin_prefetch(tile + r * ld + lanes<T>, 1);
    }
    Vector<T> sum[panel_rows][2] = {};
    for (i64 k = 0; k < depth; ++k) {
        __builtin_prefetch(right + 8 * panel_cols<T>);
        __builtin_prefetch(right + 8 * panel_cols<T> + lanes<T>);
        const Vector<T> b0 = load(right), b1 = load(right + lanes<T>);
#pragma GCC unroll 14
        for (int r = 0; r < panel_rows; ++r) {
            sum[r][0] += left[r] * b0;
            sum[r][1] += left[r] * b1;
        }
        left += panel_rows;
        right += panel_cols<T>;
    }
#pragma GCC unroll 14
    for (int r = 0; r < panel_rows; ++r) {
        T* row = tile + r * ld;
        store(row, load(row) + sum[r][0]);
        store(row + lanes<T>, load(row + lanes<T>) + sum[r][1]);
    }
}

template <class T>
void multiply(i64 depth, const T* left, i64 row_panels, const T* right, i64 right_stride, i64 col_panels, T* tile,
              i64 ld, i64 offset) {
    for (i64 q = 0; q < col_panels; ++q) {
        const i64 last_col = (q + 1) * panel_cols<T> - 1;
        for (i64 p = 0; p < row_panels; ++p) {
            if (p * panel_rows + offset > last_col) break;  // wholly below the diagonal, and so are the next
            multiply_registers(depth, left + p * panel_rows * depth, right + q * right_stride,
                               tile + p * panel_rows * ld + q * panel_cols<T>, ld);
        }
    }
}

}  // namespace
}  // namespace hessext::cpu
