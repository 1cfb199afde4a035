// A tile of a product: its shape, and its sums over more samples than one span.
#pragma once

#include <algorithm>

#include "isa/kernels.h"

namespace hessext::cpu {

// A computed tile: value(r, c) for r < rows, c < cols. With `triangle` only entries on and above the diagonal of the
// whole product count, c + first_col >= r + first_row.
template <class T>
struct Tile {
    T* values;  // [rows, tile_ld]
    i64 rows, cols;
    i64 offset;  // first_row - first_col
    bool triangle;

    i64 begin(i64 r) const {  // the first column that counts in row r
        const i64 c = r + offset;
        return triangle && c > 0 ? (c < cols ? c : cols) : 0;
    }
    i64 end(i64 c) const {  // the number of rows that count in column c
        const i64 r = c - offset + 1;
        return triangle && r < rows ? (r > 0 ? r : 0) : rows;
    }
};

// Sums over more than `span` samples: values are added to `total` (same shape) after each span, and copied back at the
// end.
template <class T>
class LongSum {
    T* values;      // [rows, ld], of which `cols` are in use
    double* total;  // null: the samples fit one span
    i64 rows, cols, ld;

  public:
    // Begins at zero, or goes on with the sums that are there.
    LongSum(T* values, double* total, i64 rows, i64 cols, i64 ld, bool goes_on = false)
        : values(values), total(total), rows(rows), cols(cols), ld(ld) {
        if (goes_on) return;
        for (i64 r = 0; r < rows; ++r) std::fill_n(values + r * ld, cols, T(0));
        for (i64 r = 0; total && r < rows; ++r) std::fill_n(total + r * ld, cols, 0.0);
    }
    void end_span() const {
        for (i64 r = 0; total && r < rows; ++r) {
            for (i64 e = r * ld; e < r * ld + cols; ++e) total[e] += double(values[e]);
            std::fill_n(values + r * ld, cols, T(0));
        }
    }
    void finish() const {
        if (!total) return;
        end_span();
        for (i64 r = 0; r < rows; ++r)
            for (i64 e = r * ld; e < r * ld + cols; ++e) values[e] = T(total[e]);
    }
};

}  // namespace hessext::cpu
