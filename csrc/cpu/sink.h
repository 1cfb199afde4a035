// Where the entries of a tile go: a dense matrix (with all their mirrored places), one block, or a sum of squares.
#pragma once

#include <algorithm>

#include "kernels.h"

namespace hessext::cpu {

// A computed tile: value(r, c) for r < rows, c < cols; with `triangle` only c + first_col >= r + first_row counts.
template <class T>
struct Tile {
    T* values;  // [rows, tile_ld]
    i64 rows, cols;
    i64 offset;  // first_row - first_col
    bool triangle;

    i64 begin(i64 r) const {  // first column that counts in row r
        const i64 c = r + offset;
        return triangle && c > 0 ? (c < cols ? c : cols) : 0;
    }
    i64 end(i64 c) const {  // rows that count in column c
        const i64 r = c - offset + 1;
        return triangle && r < rows ? (r > 0 ? r : 0) : rows;
    }
};

// Sums of more than `span` samples: values are moved into `total` (same shape) after each span, and back at the end.
template <class T>
class LongSum {
    T* values;
    double* total;  // null: the samples fit one span
    i64 count;

  public:
    LongSum(T* values, double* total, i64 count) : values(values), total(total), count(count) {
        std::fill_n(values, count, T(0));
        if (total) std::fill_n(total, count, 0.0);
    }
    void end_span() {
        if (!total) return;
        for (i64 e = 0; e < count; ++e) total[e] += double(values[e]);
        std::fill_n(values, count, T(0));
    }
    void finish() {
        if (!total) return;
        end_span();
        for (i64 e = 0; e < count; ++e) values[e] = T(total[e]);
    }
};

// out[x[r] * ld + y[c]] = value(r, c)
template <class T>
void write_rows(const Tile<T>& tile, T* out, i64 ld, const i64* x, const i64* y) {
    const bool contiguous = tile.cols == y[tile.cols - 1] - y[0] + 1;
    for (i64 r = 0; r < tile.rows; ++r) {
        const T* from = tile.values + r * tile_ld;
        T* row = out + x[r] * ld;
        if (contiguous)
            for (i64 c = tile.begin(r); c < tile.cols; ++c) row[y[0] + c] = from[c];
        else
            for (i64 c = tile.begin(r); c < tile.cols; ++c) row[y[c]] = from[c];
    }
}

// out[y[c] * ld + x[r]] = value(r, c), in strips of rows: a column of a strip stays in the first-level cache until its
// neighbours have been read.
template <class T>
void write_columns(const Tile<T>& tile, T* out, i64 ld, const i64* x, const i64* y) {
    constexpr i64 strip = 128;
    const bool contiguous = tile.rows == x[tile.rows - 1] - x[0] + 1;
    for (i64 r0 = 0; r0 < tile.rows; r0 += strip)
        for (i64 c = tile.begin(r0); c < tile.cols; ++c) {
            const T* from = tile.values + c;
            T* row = out + y[c] * ld;
            const i64 end = std::min(r0 + strip, tile.end(c));
            if (contiguous)
                for (i64 r = r0; r < end; ++r) row[x[0] + r] = from[r * tile_ld];
            else
                for (i64 r = r0; r < end; ++r) row[x[r]] = from[r * tile_ld];
        }
}

template <class T>
double sum_of_squares(const Tile<T>& tile) {
    double sum = 0;
    for (i64 r = 0; r < tile.rows; ++r) {
        const T* from = tile.values + r * tile_ld;
        double row = 0;
        for (i64 c = tile.begin(r); c < tile.cols; ++c) row += double(from[c]) * double(from[c]);
        sum += tile.triangle ? 2 * row : row;
        const i64 diagonal = r + tile.offset;
        if (tile.triangle && diagonal >= 0 && diagonal < tile.cols)
            sum -= double(from[diagonal]) * double(from[diagonal]);
    }
    return sum;
}

}  // namespace hessext::cpu
