// The main loop of one product over its samples: operands on their way to shared memory, and from there to the sums.
#pragma once

#include "epilogue.h"

namespace hessext::cuda {

// Takes the operands of one product through two stages of shared memory: while one is multiplied, the next is on its
// way. Of the operands,
//   prepare(s)      reads what stage s needs to be addressed (indices, weights),
//   fetch()         starts its loads into registers,
//   store(stage)    writes them to shared memory.
template <class Stage, class Operands, class Multiply>
__device__ __forceinline__ void mainloop(Operands& operands, int count, Stage* stages, const Multiply& multiply) {
    if (!count) return;
    __syncthreads();  // earlier stages may still be read
    operands.prepare(0);
    operands.fetch();
    operands.store(stages[0]);
    if (count > 1) operands.prepare(1);
    __syncthreads();
    for (int s = 0; s < count; ++s) {
        if (s + 1 < count) {
            operands.fetch();
            if (s + 2 < count) operands.prepare(s + 2);
        }
        multiply(stages[s % 2]);
        if (s + 1 < count) operands.store(stages[(s + 1) % 2]);
        __syncthreads();
    }
}

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
    __device__ __forceinline__ WeightedFeatures(const Params<T>& params, i64 list, Pair pair, i64 first)
        : columns_(params.right, first),
          weight_(params.lists.weight + list),
          extra_(params.lists.extra ? params.lists.extra + list : nullptr),
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
    __device__ __forceinline__ CurvatureColumn(const Params<T>& params, i64 list, Pair pair, i64 first)
        : weight_(params.lists.weight + list),
          extra_(params.lists.extra && pair.first == pair.second ? params.lists.extra + list : nullptr),
          at_top_(params.outline.r.curvature.probs ? params.lists.at_top + list : nullptr),
          shift_(params.outline.r.curvature.probs ? params.lists.shift + list : nullptr),
          probs_(at_top_ ? params.outline.r.curvature.probs + first : nullptr),
          residual_(extra_ ? params.outline.r.curvature.residual + first : nullptr),
          classes_(int(params.outline.r.curvature.classes)),
          left_(classes_ - int(first)) {
        const T* column = params.weight_columns + pair.first * classes_ + first;
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

// Both sides of a tile for samples [begin, end) of its pair's list. Weights go to the right side on its way into shared
// memory.
template <class T, class S, class Right>
class Operands {
    const FeatureColumns<T> left_;
    Right right_;
    const int* index_;  // of the list, from `begin` on; null: samples from `begin_` on
    const int begin_, count_;
    int next_[S::stage_rows];
    T value_[S::stage_rows][S::lane_cols];

  public:
    __device__ __forceinline__ Operands(const Params<T>& params, const Place& at, i64 begin, i64 end)
        : left_(params.left, at.row0 + S::stage_col()),
          right_(params, at.t * params.samples + begin, at.pair, at.col0 + S::stage_col()),
          index_(params.lists.index ? params.lists.index + at.t * params.samples + begin : nullptr),
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

// One block per tile and split. Without `split_sums` its samples fit one span and nothing is split: entries go out at
// once.
template <class T, class S, class Right, bool tensor>
__global__ void __launch_bounds__(S::threads) multiply_tiles(Params<T> params) {
    TileMemory<T, S>& memory = shared<TileMemory<T, S>>();
    const Place at = params.place(i64(blockIdx.x) / params.splits, S::side);
    const i64 split = i64(blockIdx.x) % params.splits;
    const i64 count = params.lists.count ? params.lists.count[at.t] : params.samples;
    const i64 share = ceil_div(count, params.splits);
    const i64 begin = least(split * share, count), end = least(begin + share, count);

    Sums<T, S> sums;
    double* total = params.split_sums ? params.split_sums + i64(blockIdx.x) * S::side * S::side : nullptr;
    i64 from = begin;
    do {
        const i64 to = total ? least(from + params.span, end) : end;
        Operands<T, S, Right> operands(params, at, from, to);
        mainloop(operands, int(to - from + S::depth - 1) / S::depth, memory.stages,
                 [&](const typename S::Stage& stage) { sums.template add<tensor>(stage); });
        if (total) {
            sums.each([&](T& v, int r, int c) {
                double& entry = total[r * S::side + c];
                entry = from == begin ? double(v) : entry + double(v);
            });
            sums.clear();
        }
        from = to;
    } while (from < end);
    if (!total) epilogue(params, at, sums, memory);
}

}  // namespace hessext::cuda
