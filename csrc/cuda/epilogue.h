// The end of a tile: its entries are written to one block or to a dense matrix with all mirrored places, or their
// squares are summed.
#pragma once

#include <climits>

#include "reduce.h"
#include "tile.h"
#include "workspace.h"

namespace hessext::cuda {

// The entries of a tile that exist: the number of its rows and columns, and in a triangle those with r - c <= diagonal.
struct Bounds {
    int rows, cols, diagonal;

    template <class T>
    __device__ __forceinline__ Bounds(const Params<T>& params, i64 row0, i64 col0)
        : rows(int(params.left.size() - row0)),
          cols(int(params.right_size() - col0)),
          diagonal(params.triangle ? int(col0 - row0) : INT_MAX) {}

    __device__ __forceinline__ bool contain(int r, int c) const { return r < rows && c < cols && r - c <= diagonal; }
};

// The place of a tile of pair t in block (i, j) = pair of the result, or with `mirror` the place of its transpose.
template <class T>
class Destination {
    T* const out_;
    const Line rows_, cols_;
    const Bounds bounds_;

  public:
    __device__ __forceinline__ Destination(const Params<T>& params, i64 t, Pair pair, i64 row0, i64 col0, bool mirror)
        : out_(params.outline.base(params.first_pair + t)),
          rows_(params.outline.dense.rows, params.outline.tile_is_features(true), pair.first, row0,
                mirror ? 1 : params.outline.dense.ld),
          cols_(params.outline.dense.cols, params.outline.tile_is_features(false), pair.second, col0,
                mirror ? params.outline.dense.ld : 1),
          bounds_(params, row0, col0) {}

    __device__ __forceinline__ void write(int r, int c, T value) const {
        if (bounds_.contain(r, c)) out_[rows_(r) + cols_(c)] = value;
    }
};

// Calls f(pair) for each block of the result to which a pair's tile is written.
template <class T, class F>
__device__ __forceinline__ void each_copy(const Outline<T>& o, Pair pair, const F& f) {
    const i64 copies = o.copies(pair);
#pragma unroll 1
    for (i64 k = 0; k < copies; ++k) f(o.copy(pair, k));
}

// Writes the entries of a finished tile, or sums their squares.
template <class T, class S, int stages>
__device__ __forceinline__ void epilogue(const Params<T>& params, const Place& at, Sums<T, S>& sums,
                                         TileMemory<T, S, stages>& memory) {
    const Outline<T>& o = params.outline;
    if (params.tile_squares) {
        const Bounds bounds(params, at.row0, at.col0);
        double squares = 0;
        sums.each([&](T& v, int r, int c) {
            if (bounds.contain(r, c))
                squares += (params.triangle && r - c < bounds.diagonal ? 2 : 1) * double(v) * double(v);
        });
        squares = block_sum(squares, memory.block_sum);
        const i64 tile = params.tiles.number({at.row0 / S::side, at.col0 / S::side});
        if (threadIdx.x == 0) params.tile_squares[at.t * params.tiles.count() + tile] = squares;
        return;
    }
    each_copy(o, at.pair, [&](Pair copy) {
        if (o.dense.direct) {
            const Destination<T> to(params, at.t, copy, at.row0, at.col0, false);
            sums.template each_coalesced<false>(memory.staging, [&](T v, int r, int c) { to.write(r, c, v); });
        }
        if (o.dense.mirror) {
            const Destination<T> to(params, at.t, copy, at.row0, at.col0, true);
            sums.template each_coalesced<true>(memory.staging, [&](T v, int r, int c) { to.write(r, c, v); });
        }
    });
}

// One block per tile: adds the sums of its splits in a fixed order.
template <class T, class S>
__global__ void __launch_bounds__(S::threads, least_blocks<S>) add_splits(Params<T> params) {
    const double* split_sums = params.split_sums + i64(blockIdx.x) * params.splits * S::side * S::side;
    Sums<T, S> sums;
    sums.each([&](T& v, int r, int c) {
        double total = 0;
        for (i64 s = 0; s < params.splits; ++s) total += split_sums[(s * S::side + r) * S::side + c];
        v = T(total);
    });
    epilogue(params, params.place(blockIdx.x, S::side), sums, shared<TileMemory<T, S>>());
}

// One thread per pair: adds the squared norms of its tiles in a fixed order.
template <class T>
__global__ void add_squares(Params<T> params) {
    const i64 t = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (t >= params.pairs) return;
    const i64 tiles = params.tiles.count();
    double sum = 0;
    for (i64 tile = 0; tile < tiles; ++tile) sum += params.tile_squares[t * tiles + tile];
    params.outline.r.norms[params.first_pair + t] = sum;
}

constexpr int diagonal_warps = 16;

// If classes fill the tile, entries (j, j) of p p^T become p_j (1 - p_j). A thread block has 32 classes of one pair,
// and its warps share the samples.
template <class T>
__global__ void __launch_bounds__(warp_size* diagonal_warps) softmax_diagonals(Params<T> params) {
    const Curvature<T>& q = params.outline.r.curvature;
    const i64 groups = ceil_div(q.classes, warp_size), t = i64(blockIdx.x) / groups;
    const int lane = int(threadIdx.x) % warp_size, warp = int(threadIdx.x) / warp_size;
    const i64 j = i64(blockIdx.x) % groups * warp_size + lane;
    const i64 list = t * params.samples, count = params.lists.count[t];
    double total = 0;
    for (i64 k = warp; k < count && j < q.classes; k += diagonal_warps) {
        const i64 n = params.lists.index[list + k];
        total -= double(params.lists.weight[list + k] * q.probs[n * q.classes + j] * complement(q, n, j));
    }
    total = lane_sum(total, shared<LaneSum<warp_size * diagonal_warps>>());
    if (warp || j >= q.classes) return;
    each_copy(params.outline, params.pair(t),
              [&](Pair copy) { Destination<T>(params, t, copy, 0, 0, false).write(int(j), int(j), T(total)); });
}

}  // namespace hessext::cuda
