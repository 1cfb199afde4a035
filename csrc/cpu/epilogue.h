// The end of a tile: its entries are written to a block or a dense matrix with all mirrored places, or their squares
// are summed.
#pragma once

#include <omp.h>

#include <algorithm>
#include <vector>

#include "../assembly.h"
#include "launch.h"
#include "tile.h"
#include "workspace.h"

namespace hessext::cpu {

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

// Squared norms of `count` pairs from those of their jobs [count, jobs], added in a fixed order.
inline void add_squares(const std::vector<double>& partial, i64 jobs, i64 count, double* norms) {
    for (i64 t = 0; t < count; ++t) {
        double sum = 0;
        for (i64 at = 0; at < jobs; ++at) sum += partial[t * jobs + at];
        norms[t] = sum;
    }
}

// Writes the tiles of a pairwise assembly.
template <class T>
class Epilogue {
    const Outline<T>& outline_;
    const Assembly<T>& r = outline_.r;
    const Curvature<T>& q = r.curvature;
    const Dense<T>& dense = outline_.dense;
    const bool flipped;  // the tile's rows are on the side of H's columns

  public:
    Epilogue(const Outline<T>& outline, bool flipped) : outline_(outline), flipped(flipped) {}

    // Writes a tile to all blocks that have its entries, and to their mirror images. x and y are scratch.
    void write(const Tile<T>& tile, i64 t, Pair pair, i64 r0, i64 c0, i64* x, i64* y) const {
        T* out = outline_.base(t);
        for (i64 k = 0; k < outline_.copies(pair); ++k) {
            const Pair block = outline_.copy(pair, k);
            if (flipped ? dense.mirror : dense.direct) {
                number(block, r0, tile.rows, !flipped, false, x);
                number(block, c0, tile.cols, flipped, feature_major(), y);
                write_rows(tile, out, dense.ld, x, y);
            }
            if (flipped ? dense.direct : dense.mirror) {
                number(block, r0, tile.rows, !flipped, feature_major(), x);
                number(block, c0, tile.cols, flipped, false, y);
                write_columns(tile, out, dense.ld, x, y);
            }
        }
    }

    // At the end of the assembly: puts rows in order that were written feature by feature.
    void interleave(int threads, Interrupt& interrupt) const {
        if (!feature_major()) return;
        if (dense.direct) interleave(dense.rows, q.rows, r.left.size(), dense.cols, threads, interrupt);
        if (dense.mirror && q.kind == Kind::output && !(dense.direct && r.same_features))
            interleave(dense.cols, q.classes, r.right.size(), dense.rows, threads, interrupt);
    }

  private:
    // The rows or columns of H to which `count` items of the tile from e0 on belong.
    void number(Pair block, i64 e0, i64 count, bool row, bool by_feature, i64* to) const {
        const Axis plain = row ? dense.rows : dense.cols;
        const bool features = outline_.tile_is_features(row);
        const Line line(by_feature && !features ? class_runs(plain) : plain, features, row ? block.first : block.second,
                        e0, 1);
        for (i64 e = 0; e < count; ++e) to[e] = line(e);
    }

    // If classes fill the tile, neighbours in it are a block apart in a row of the matrix, and every cache line would
    // be visited once per feature. Rows are therefore written feature by feature, and put in order at the end.
    bool feature_major() const { return outline_.outer != Outer::blocks; }
    Axis class_runs(const Axis& a) const {
        const bool inside = a.step > a.cols;  // the bias is the last parameter of its block
        return {a.start, 1,        inside ? a.start + a.cols * q.classes : a.start_bias, inside ? 1 : a.step_bias,
                a.cols,  q.classes};
    }

    // In the rows of `rows`: [step, C] at the start of `cols` becomes [C, step].
    void interleave(const Axis& rows, i64 blocks, i64 size, const Axis& cols, int threads, Interrupt& interrupt) const {
        const i64 step = cols.step, length = step * q.classes;
        if (step < 2) return;
        Buffer<T> copies(threads * length);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
        for (i64 row = 0; row < blocks * size; ++row) {
            if (interrupt.raised()) continue;
            T* to = dense.out + rows.at(row / size, row % size) * dense.ld + cols.start;
            T* copy = copies.get() + omp_get_thread_num() * length;
            std::copy_n(to, length, copy);
            for (i64 j = 0; j < q.classes; ++j)
                for (i64 a = 0; a < step; ++a) to[j * step + a] = copy[a * q.classes + j];
        }
        interrupt.check();
    }
};

}  // namespace hessext::cpu
