// Where the entries of a tile go: a dense matrix, with all their mirrored places, or one block.
#pragma once

#include <climits>

#include "assembly.h"

namespace hessext::cuda {

// Where the entries e of one side of a tile are among the rows or columns of the result, times their distance in
// memory.
class Line {
    i64 first_, step_, bias_;
    int stored_;  // e of the bias

  public:
    // features: e counts features from `from` on, and the pair says which block; else the other way round.
    __device__ __forceinline__ Line(const Axis& axis, bool features, i64 of_pair, i64 from, i64 distance) {
        const i64 step = features ? axis.inner : axis.stride(of_pair);
        const i64 start = features ? axis.start + of_pair * axis.step : axis.first(of_pair);
        first_ = (start + from * step) * distance;
        step_ = step * distance;
        bias_ = (axis.start_bias + of_pair * axis.step_bias) * distance;
        stored_ = features ? int(axis.cols - from) : INT_MAX;
    }
    __device__ __forceinline__ i64 operator()(int e) const { return e < stored_ ? first_ + e * step_ : bias_; }
};

// What there is of a tile: rows, columns, and of a triangle the entries r - c <= diagonal.
struct Extent {
    int rows, cols, diagonal;

    template <class T>
    __device__ __forceinline__ Extent(const Job<T>& job, i64 row0, i64 col0)
        : rows(int(job.left.size() - row0)),
          cols(int(job.right_size() - col0)),
          diagonal(job.triangle ? int(col0 - row0) : INT_MAX) {}

    __device__ __forceinline__ bool has(int r, int c) const { return r < rows && c < cols && r - c <= diagonal; }
};

// Where a tile goes in one block (i, j) = pair of the result, in rows as they are or, mirrored, in columns.
template <class T>
class Destination {
    T* const out_;
    const Line rows_, cols_;
    const Extent extent_;

  public:
    __device__ __forceinline__ Destination(const Job<T>& job, i64 t, Pair pair, i64 row0, i64 col0, bool mirror)
        : out_(job.outline.base(job.first_pair + t)),
          rows_(job.outline.dense.rows, job.outline.tile_is_features(true), pair.first, row0,
                mirror ? 1 : job.outline.dense.ld),
          cols_(job.outline.dense.cols, job.outline.tile_is_features(false), pair.second, col0,
                mirror ? job.outline.dense.ld : 1),
          extent_(job, row0, col0) {}

    __device__ __forceinline__ void write(int r, int c, T value) const {
        if (extent_.has(r, c)) out_[rows_(r) + cols_(c)] = value;
    }
};

// f(pair) for the blocks of the result that a pair's tile is written to.
template <class T, class F>
__device__ __forceinline__ void each_copy(const Outline<T>& o, Pair pair, const F& f) {
    const i64 copies = o.copies(pair.first, pair.second);
#pragma unroll 1
    for (i64 copy = 0; copy < copies; ++copy)
        f(o.replicated ? Pair{copy, copy} : copy ? Pair{pair.second, pair.first} : pair);
}

}  // namespace hessext::cuda
