// The jobs of an assembly: the product of one tile, its sums over spans and splits, and what becomes of its entries.
#pragma once

#include "destination.h"
#include "lists.h"
#include "tiles.h"

namespace hessext::cuda {

// Columns of a feature matrix that a lane loads: the first one, and every 32nd from there on.
template <class T>
class FeatureColumns {
    const T* data_;
    const int ld_, stored_, all_;  // from the first column on

  public:
    __device__ __forceinline__ FeatureColumns(const Features<T>& f, i64 first)
        : data_(f.data + first), ld_(int(f.ld)), stored_(int(f.cols - first)), all_(int(f.size() - first)) {}

    __device__ __forceinline__ T operator()(int n, int column) const {
        return column < stored_ ? data_[i64(n) * ld_ + column] : T(column < all_ ? 1 : 0);
    }
};

// Right side w_n psi_n[b]; the residual adds extra_n to column `patch`.
template <class T, class S>
class WeightedFeatures {
    const FeatureColumns<T> columns_;
    const T *weight_, *extra_;  // of the list
    const int patch_;           // among this lane's columns
    T next_weight_[S::stage_rows], next_extra_[S::stage_rows], now_weight_[S::stage_rows], now_extra_[S::stage_rows];
    T value_[S::stage_rows][S::lane_cols];

  public:
    __device__ __forceinline__ WeightedFeatures(const Job<T>& job, i64 list, Pair pair, i64 first)
        : columns_(job.right, first),
          weight_(job.lists.weight + list),
          extra_(job.lists.extra ? job.lists.extra + list : nullptr),
          patch_(extra_ ? int(pair.first - first) : -1) {}

    __device__ __forceinline__ void prepare(int i, i64 k, bool inside) {
        next_weight_[i] = inside ? weight_[k] : T(0);
        next_extra_[i] = inside && extra_ ? extra_[k] : T(0);
    }
    __device__ __forceinline__ void fetch(int i, int n) {
        now_weight_[i] = next_weight_[i], now_extra_[i] = next_extra_[i];
#pragma unroll
        for (int c = 0; c < S::lane_cols; ++c) value_[i][c] = columns_(n, c * warp_size);
    }
    __device__ __forceinline__ T operator()(int i, int c) const {
        return now_weight_[i] * value_[i][c] + (c * warp_size == patch_ ? now_extra_[i] : T(0));
    }
};

// Right side w_n (B_n V)[j, i] / c_n, w_n p_n[j] (V[j, i] - E_p V[., i]) or w_n V[j, i], plus extra_n r_n[j]. Unit i is
// the pair's first.
template <class T, class S>
class CurvatureColumn {
    const T *weight_, *extra_, *at_top_, *shift_;  // of the list
    const T *probs_, *residual_;                   // from this lane's first class on
    const int classes_, left_;
    T v_[S::lane_cols];
    T next_[4][S::stage_rows], now_[4][S::stage_rows];
    int n_[S::stage_rows];
    T value_[S::stage_rows][S::lane_cols];

  public:
    __device__ __forceinline__ CurvatureColumn(const Job<T>& job, i64 list, Pair pair, i64 first)
        : weight_(job.lists.weight + list),
          extra_(job.lists.extra && pair.first == pair.second ? job.lists.extra + list : nullptr),
          at_top_(job.outline.r.curvature.probs ? job.lists.at_top + list : nullptr),
          shift_(job.outline.r.curvature.probs ? job.lists.shift + list : nullptr),
          probs_(at_top_ ? job.outline.r.curvature.probs + first : nullptr),
          residual_(extra_ ? job.outline.r.curvature.residual + first : nullptr),
          classes_(int(job.outline.r.curvature.classes)),
          left_(classes_ - int(first)) {
        const T* column = job.weight_columns + pair.first * classes_ + first;
#pragma unroll
        for (int c = 0; c < S::lane_cols; ++c) v_[c] = c * warp_size < left_ ? column[c * warp_size] : T(0);
    }

    __device__ __forceinline__ void prepare(int i, i64 k, bool inside) {
        const T* const from[4] = {weight_, extra_, at_top_, shift_};
#pragma unroll
        for (int e = 0; e < 4; ++e) next_[e][i] = inside && from[e] ? from[e][k] : T(0);
    }
    __device__ __forceinline__ void fetch(int i, int n) {
        n_[i] = n;
#pragma unroll
        for (int e = 0; e < 4; ++e) now_[e][i] = next_[e][i];
#pragma unroll
        for (int c = 0; c < S::lane_cols; ++c)
            value_[i][c] = !probs_ ? T(1) : c * warp_size < left_ ? probs_[i64(n) * classes_ + c * warp_size] : T(0);
    }
    __device__ __forceinline__ T operator()(int i, int c) const {
        const T sum = now_[0][i] * value_[i][c] * ((v_[c] - now_[2][i]) - now_[3][i]);
        if (!residual_ || c * warp_size >= left_) return sum;
        return sum + now_[1][i] * residual_[i64(n_[i]) * classes_ + c * warp_size];
    }
};

// Both sides of a job's tile for samples [begin, end) of its list, as `run_stages` reads them. Weights go to the
// right side on its way into shared memory.
template <class T, class S, class Right>
class Operands {
    const FeatureColumns<T> left_;
    Right right_;
    const int* index_;  // of the list, from `begin` on; null: samples from `begin_` on
    const int begin_, count_;
    int next_[S::stage_rows];
    T value_[S::stage_rows][S::lane_cols];

  public:
    __device__ __forceinline__ Operands(const Job<T>& job, i64 list, Pair pair, i64 begin, i64 end, i64 row0, i64 col0)
        : left_(job.left, row0 + S::stage_col()),
          right_(job, list + begin, pair, col0 + S::stage_col()),
          index_(job.lists.index ? job.lists.index + list + begin : nullptr),
          begin_(int(begin)),
          count_(int(end - begin)) {}

    __device__ __forceinline__ void prepare(int stage) {
#pragma unroll
        for (int i = 0; i < S::stage_rows; ++i) {
            const int k = stage * S::depth + S::stage_row(i);
            next_[i] = k >= count_ ? 0 : index_ ? index_[k] : begin_ + k;  // beyond the end: weight zero
            right_.prepare(i, k, k < count_);
        }
    }
    __device__ __forceinline__ void fetch() {
#pragma unroll
        for (int i = 0; i < S::stage_rows; ++i) {
#pragma unroll
            for (int c = 0; c < S::lane_cols; ++c) value_[i][c] = left_(next_[i], c * warp_size);
            right_.fetch(i, next_[i]);
        }
    }
    __device__ __forceinline__ void store(typename S::Stage& stage) const {
#pragma unroll
        for (int i = 0; i < S::stage_rows; ++i)
#pragma unroll
            for (int c = 0; c < S::lane_cols; ++c) {
                stage.left[S::stage_row(i)][S::stage_col() + c * warp_size] = value_[i][c];
                stage.right[S::stage_row(i)][S::stage_col() + c * warp_size] = right_(i, c);
            }
    }
};

// Squares or writes the entries of a job's tile.
template <class T, class S>
__device__ __forceinline__ void finish(const Job<T>& job, i64 t, Pair pair, i64 row0, i64 col0, i64 partial,
                                       Sums<T, S>& sums, TileMemory<T, S>& memory) {
    const Outline<T>& o = job.outline;
    if (job.partial) {
        const Extent extent(job, row0, col0);
        double squares = 0;
        sums.each([&](T& v, int r, int c) {
            if (extent.has(r, c)) squares += (job.triangle && r - c < extent.diagonal ? 2 : 1) * double(v) * double(v);
        });
        squares = block_sum(squares, memory.scratch);
        if (threadIdx.x == 0) job.partial[partial] = squares;
        return;
    }
    each_copy(o, pair, [&](Pair copy) {
        if (o.dense.direct) {
            const Destination<T> to(job, t, copy, row0, col0, false);
            sums.template each_through<false>(memory.strips, [&](T v, int r, int c) { to.write(r, c, v); });
        }
        if (o.dense.mirror) {
            const Destination<T> to(job, t, copy, row0, col0, true);
            sums.template each_through<true>(memory.strips, [&](T v, int r, int c) { to.write(r, c, v); });
        }
    });
}

// One block per job and split. Without slots its samples fit one span and nothing is split: entries go out at once.
template <class T, class S, class Right, bool tensor>
__global__ void __launch_bounds__(S::threads) multiply_tiles(Job<T> job) {
    TileMemory<T, S>& memory = shared<TileMemory<T, S>>();
    const i64 at = i64(blockIdx.x) / job.splits, split = i64(blockIdx.x) % job.splits;
    const i64 tiles = job.tiles.count(), t = (job.first_job + at) / tiles, tile = (job.first_job + at) % tiles;
    const Pair pair = pair_of(job, t), place = job.tiles.at(tile);
    const i64 row0 = place.first * S::side, col0 = place.second * S::side;
    const i64 count = job.lists.count ? job.lists.count[t] : job.samples, share = (count + job.splits - 1) / job.splits;
    const i64 begin = least(split * share, count), end = least(begin + share, count);

    Sums<T, S> sums;
    double* slot = job.slots ? job.slots + i64(blockIdx.x) * S::side * S::side : nullptr;
    i64 from = begin;
    do {
        const i64 to = slot ? least(from + job.span, end) : end;
        Operands<T, S, Right> operands(job, t * job.samples, pair, from, to, row0, col0);
        run_stages(operands, int(to - from + S::depth - 1) / S::depth, memory.buffers,
                   [&](const typename S::Stage& stage) { sums.template add<tensor>(stage); });
        if (slot) {
            sums.each([&](T& v, int r, int c) {
                double& total = slot[r * S::side + c];
                total = from == begin ? double(v) : total + double(v);
            });
            sums.clear();
        }
        from = to;
    } while (from < end);
    if (slot) return;
    finish(job, t, pair, row0, col0, job.first_job + at, sums, memory);
}

// One block per job: adds its slots in order.
template <class T, class S>
__global__ void __launch_bounds__(S::threads) finish_tiles(Job<T> job) {
    const i64 at = blockIdx.x, tiles = job.tiles.count();
    const i64 t = (job.first_job + at) / tiles, tile = (job.first_job + at) % tiles;
    const Pair pair = pair_of(job, t), place = job.tiles.at(tile);
    const double* slots = job.slots + at * job.splits * S::side * S::side;
    Sums<T, S> sums;
    sums.each([&](T& v, int r, int c) {
        double total = 0;
        for (i64 s = 0; s < job.splits; ++s) total += slots[(s * S::side + r) * S::side + c];
        v = T(total);
    });
    finish(job, t, pair, place.first * S::side, place.second * S::side, job.first_job + at, sums,
           shared<TileMemory<T, S>>());
}

// One block per pair: its squared norm from those of its tiles, in order.
template <class T>
__global__ void add_squares(Job<T> job) {
    const i64 t = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (t >= job.pairs) return;
    const i64 tiles = job.tiles.count();
    double sum = 0;
    for (i64 tile = 0; tile < tiles; ++tile) sum += job.partial[t * tiles + tile];
    job.outline.r.norms[job.first_pair + t] = sum;
}

constexpr int diagonal_strips = 16;

// Where classes fill the tile, entries (j, j) of p p^T become p_j (1 - p_j). A block has 32 classes of one pair.
template <class T>
__global__ void __launch_bounds__(warp_size* diagonal_strips) softmax_diagonals(Job<T> job) {
    const Curvature<T>& q = job.outline.r.curvature;
    const i64 groups = blocks_for(q.classes, warp_size), t = i64(blockIdx.x) / groups;
    const int lane = int(threadIdx.x) % warp_size, strip = int(threadIdx.x) / warp_size;
    const i64 j = i64(blockIdx.x) % groups * warp_size + lane, list = t * job.samples, count = job.lists.count[t];
    double total = 0;
    for (i64 k = strip; k < count && j < q.classes; k += diagonal_strips) {
        const i64 n = job.lists.index[list + k];
        total -= double(job.lists.weight[list + k] * q.probs[n * q.classes + j] * complement(q, n, j));
    }
    total = lane_sum(total, shared<LaneScratch<warp_size * diagonal_strips>>());
    if (strip || j >= q.classes) return;
    each_copy(job.outline, pair_of(job, t),
              [&](Pair copy) { Destination<T>(job, t, copy, 0, 0, false).write(int(j), int(j), T(total)); });
}

}  // namespace hessext::cuda
