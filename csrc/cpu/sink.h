// Where the entries of a tile go: a dense matrix (with all their mirrored places), one block, or a sum of squares.
#pragma once

#include "kernels.h"

namespace hessext::cpu {

// A computed tile: value(r, c) for r < rows, c < cols; with `triangle` only c + first_col >= r + first_row counts.
struct Tile {
    const double* values;  // [rows, tile_ld]
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

// out[x[r] * ld + y[c]] = value(r, c)
template <class T>
void write_rows(const Tile& tile, T* out, i64 ld, const i64* x, const i64* y) {
    const bool contiguous = tile.cols == y[tile.cols - 1] - y[0] + 1;
    for (i64 r = 0; r < tile.rows; ++r) {
        const double* from = tile.values + r * tile_ld;
        T* row = out + x[r] * ld;
        if (contiguous)
            for (i64 c = tile.begin(r); c < tile.cols; ++c) row[y[0] + c] = T(from[c]);
        else
            for (i64 c = tile.begin(r); c < tile.cols; ++c) row[y[c]] = T(from[c]);
    }
}

// out[y[c] * ld + x[r]] = value(r, c)
template <class T>
void write_columns(const Tile& tile, T* out, i64 ld, const i64* x, const i64* y) {
    const bool contiguous = tile.rows == x[tile.rows - 1] - x[0] + 1;
    for (i64 c = 0; c < tile.cols; ++c) {
        const double* from = tile.values + c;
        T* row = out + y[c] * ld;
        const i64 end = tile.end(c);
        if (contiguous)
            for (i64 r = 0; r < end; ++r) row[x[0] + r] = T(from[r * tile_ld]);
        else
            for (i64 r = 0; r < end; ++r) row[x[r]] = T(from[r * tile_ld]);
    }
}

inline double sum_of_squares(const Tile& tile) {
    double sum = 0;
    for (i64 r = 0; r < tile.rows; ++r) {
        const double* from = tile.values + r * tile_ld;
        double row = 0;
        for (i64 c = tile.begin(r); c < tile.cols; ++c) row += from[c] * from[c];
        sum += tile.triangle ? 2 * row : row;
        const i64 diagonal = r + tile.offset;
        if (tile.triangle && diagonal >= 0 && diagonal < tile.cols) sum -= from[diagonal] * from[diagonal];
    }
    return sum;
}

}  // namespace hessext::cpu
