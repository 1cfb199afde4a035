// The two sides of a tile of an assembly: rows of features or of probabilities, the right ones weighted.
#pragma once

#include "copy.h"
#include "tile.h"
#include "workspace.h"

namespace hessext::cuda {

// The part of each side of a stage that one thread copies and finishes: every `down`th row, `rows` in all. Of each row
// it has 16 contiguous bytes or, if rows are not aligned, as many single entries that are `across` columns apart.
template <class T, class S>
struct Share {
    static constexpr int size = Piece<T>::size, across = S::side / size, down = S::threads / across;
    static constexpr int rows = S::depth / down;
    using Side = T (&)[S::depth][S::ld];

    static __device__ __forceinline__ int first_row() { return int(threadIdx.x) / across; }
};

// This thread's columns of a matrix.
template <class T, class S>
class Columns {
    using Mine = Share<T, S>;
    using Side = typename Mine::Side;

    const bool pieces_;
    const int first_;      // the first of them in the tile
    const T* const data_;  // the matrix from this column on
    const unsigned ld_;    // distance of rows in bytes
    int count_;            // how many are in memory
    int bias_;             // the column of the bias in the tile, or -1

    static __device__ __forceinline__ T* row(Side side, int i) {
        return &side[Mine::first_row()][0] + i * Mine::down * S::ld;
    }

    __device__ __forceinline__ const T* from(int n) const {
        return reinterpret_cast<const T*>(reinterpret_cast<const char*>(data_) + std::size_t(unsigned(n)) * ld_);
    }

  public:
    __device__ __forceinline__ Columns(const Features<T>& f, bool aligned, i64 col0)
        : pieces_(aligned),
          first_(int(threadIdx.x) % Mine::across * (pieces_ ? Mine::size : 1)),
          data_(f.data + col0 + first_),
          ld_(unsigned(f.ld * i64(sizeof(T)))),
          count_(0),
          bias_(-1) {
        for (int e = 0; e < Mine::size; ++e) {
            count_ += col0 + column(e) < f.cols;
            if (f.ones && col0 + column(e) == f.cols) bias_ = column(e);
        }
    }

    // This thread's column number e in the tile.
    __device__ __forceinline__ int column(int e) const { return first_ + e * (pieces_ ? 1 : Mine::across); }

    // Writes the entries of a stage that are not copied to it.
    __device__ __forceinline__ void fill(Side side) const {
        for (int i = 0; i < Mine::rows; ++i)
            for (int e = count_; e < Mine::size; ++e) row(side, i)[column(e)] = T(column(e) == bias_ ? 1 : 0);
    }
    // Begins to copy these rows of the matrix to a stage.
    __device__ __forceinline__ void copy(Side side, const int (&n)[Mine::rows]) const {
        if (pieces_) {
            if (!count_) return;
#pragma unroll
            for (int i = 0; i < Mine::rows; ++i) copy_async<Mine::size>(row(side, i) + first_, from(n[i]));
            return;
        }
#pragma unroll
        for (int e = 0; e < Mine::size; ++e)
            if (e < count_)
#pragma unroll
                for (int i = 0; i < Mine::rows; ++i)
                    copy_async<1>(row(side, i) + first_ + e * Mine::across, from(n[i]) + e * Mine::across);
    }
    // Calls f(value, i, e) for entry e of each row i of a stage.
    template <class F>
    __device__ __forceinline__ void each(Side side, const F& f) const {
        if (pieces_) {
#pragma unroll
            for (int i = 0; i < Mine::rows; ++i) {
                Piece<T>& there = *reinterpret_cast<Piece<T>*>(row(side, i) + first_);
                Piece<T> piece = there;
#pragma unroll
                for (int e = 0; e < Mine::size; ++e) f(piece.value[e], i, e);
                there = piece;
            }
            return;
        }
#pragma unroll
        for (int i = 0; i < Mine::rows; ++i)
#pragma unroll
            for (int e = 0; e < Mine::size; ++e) f(row(side, i)[first_ + e * Mine::across], i, e);
    }
    // Calls f(value, i) for the entries of the bias.
    template <class F>
    __device__ __forceinline__ void each_bias(Side side, const F& f) const {
        each_of(bias_, side, f);
    }
    // The same for a column of this thread; none if it is -1.
    template <class F>
    static __device__ __forceinline__ void each_of(int column, Side side, const F& f) {
        if (column < 0) return;
#pragma unroll
        for (int i = 0; i < Mine::rows; ++i) f(row(side, i)[column], i);
    }
};

// The right side w_n psi_n[b]. The residual adds extra_n to column `patch`.
template <class T, class S>
class WeightedFeatures {
    using Mine = Share<T, S>;

    const Columns<T, S> columns_;
    const T *weight_, *extra_;             // of this thread's first row of a stage
    int patch_;                            // -1 if it is not one of this thread's columns
    T w_[Mine::rows], added_[Mine::rows];  // of the next stage to be finished

  public:
    __device__ __forceinline__ WeightedFeatures(const Params<T>& params, i64 list, Pair pair, i64 col0)
        : columns_(params.right, params.right_aligned, col0),
          weight_(params.lists.weight + list),
          extra_(params.lists.extra ? params.lists.extra + list : weight_),
          patch_(-1) {
        for (int e = 0; e < Mine::size; ++e)
            if (params.lists.extra && col0 + columns_.column(e) == pair.first) patch_ = columns_.column(e);
    }

    __device__ __forceinline__ const Columns<T, S>& columns() const { return columns_; }
    __device__ __forceinline__ void prepare(int left) {
#pragma unroll
        for (int i = 0; i < Mine::rows; ++i) w_[i] = i * Mine::down < left ? weight_[i * Mine::down] : T(0);
        weight_ += S::depth;
        if (patch_ < 0) return;
#pragma unroll
        for (int i = 0; i < Mine::rows; ++i) added_[i] = i * Mine::down < left ? extra_[i * Mine::down] : T(0);
        extra_ += S::depth;
    }
    __device__ __forceinline__ void finish(typename Mine::Side side) const {
        columns_.each(side, [&](T& v, int i, int) { v *= w_[i]; });
        columns_.each_bias(side, [&](T& v, int i) { v = w_[i]; });
        columns_.each_of(patch_, side, [&](T& v, int i) { v += added_[i]; });
    }
};

// The right side w_n (B_n V)[j, i] / c_n, which is w_n p_n[j] (V[j, i] - E_p V[., i]) or w_n V[j, i], plus
// extra_n r_n[j]. Unit i is the first index of the pair.
template <class T, class S>
class CurvatureColumn {
    using Mine = Share<T, S>;

    const Curvature<T>& q_;
    const SampleLists<T>& lists_;
    const bool softmax_, residual_;
    const i64 col0_;
    const Columns<T, S> probs_;  // empty without a softmax: nothing is copied
    i64 k_;                      // this thread's first row of the next stage in the lists
    T v_[Mine::size];
    T w_[Mine::rows], at_top_[Mine::rows], shift_[Mine::rows];  // of the next stage to be finished
    int left_;                                                  // samples from its first row on

    __device__ __forceinline__ i64 class_at(int e) const { return col0_ + probs_.column(e); }

    // It is for few pairs and not worth registers, so that it waits for its loads.
    __device__ __forceinline__ void add_residual(typename Mine::Side side) const {
        const i64 k = k_ - S::depth;
#pragma unroll 1
        for (int e = 0; e < Mine::size && class_at(e) < q_.classes; ++e)
            probs_.each_of(probs_.column(e), side, [&](T& v, int i) {
                if (i * Mine::down >= left_) return;
                const i64 n = lists_.index[k + i * Mine::down];
                v += lists_.extra[k + i * Mine::down] * q_.residual[n * q_.classes + class_at(e)];
            });
    }

  public:
    __device__ __forceinline__ CurvatureColumn(const Params<T>& params, i64 list, Pair pair, i64 col0)
        : q_(params.outline.r.curvature),
          lists_(params.lists),
          softmax_(q_.probs),
          residual_(lists_.extra && pair.first == pair.second),
          col0_(col0),
          probs_({softmax_ ? q_.probs : q_.weight, q_.classes, softmax_ ? q_.classes : 0, false}, params.right_aligned,
                 col0),
          k_(list) {
#pragma unroll
        for (int e = 0; e < Mine::size; ++e)
            v_[e] = class_at(e) < q_.classes ? params.weight_columns[pair.first * q_.classes + class_at(e)] : T(0);
    }

    __device__ __forceinline__ const Columns<T, S>& columns() const { return probs_; }
    __device__ __forceinline__ void prepare(int left) {
        const T *weight = lists_.weight + k_, *at_top = lists_.at_top + k_, *shift = lists_.shift + k_;
#pragma unroll
        for (int i = 0; i < Mine::rows; ++i) {
            const bool inside = i * Mine::down < left;
            w_[i] = inside ? weight[i * Mine::down] : T(0);
            at_top_[i] = inside && softmax_ ? at_top[i * Mine::down] : T(0);
            shift_[i] = inside && softmax_ ? shift[i * Mine::down] : T(0);
        }
        k_ += S::depth, left_ = left;
    }
    __device__ __forceinline__ void finish(typename Mine::Side side) const {
        if (softmax_)
            probs_.each(side, [&](T& v, int i, int e) { v = w_[i] * v * ((v_[e] - at_top_[i]) - shift_[i]); });
        else
            probs_.each(side, [&](T& v, int i, int e) { v = w_[i] * v_[e]; });
        if (residual_) add_residual(side);
    }
};

// Both sides of a tile for samples [begin, end) of its pair's list, for `asynchronous_mainloop`.
template <class T, class S, class Right>
class Operands {
    using Mine = Share<T, S>;
    using Stage = typename S::Stage;

    const Columns<T, S> left_;
    Right right_;
    const bool listed_;
    const int* index_;        // the list, from this thread's first row of the next stage on
    int n_;                   // the sample of that row, if there is no list
    int to_find_, to_weigh_;  // samples from that row on, for `find` and for `prepare`
    int next_[Mine::rows];

  public:
    __device__ __forceinline__ Operands(const Params<T>& params, const Place& at, i64 begin, i64 end)
        : left_(params.left, params.left_aligned, at.row0),
          right_(params, at.t * params.samples + begin + Mine::first_row(), at.pair, at.col0),
          listed_(params.lists.index),
          index_(listed_ ? params.lists.index + at.t * params.samples + begin + Mine::first_row() : nullptr),
          n_(int(begin) + Mine::first_row()),
          to_find_(int(end - begin) - Mine::first_row()),
          to_weigh_(to_find_) {}

    __device__ __forceinline__ void fill(Stage& stage) const {
        left_.fill(stage.left), right_.columns().fill(stage.right);
    }
    __device__ __forceinline__ void find() {
#pragma unroll
        for (int i = 0; i < Mine::rows; ++i)
            next_[i] = i * Mine::down >= to_find_ ? 0 : listed_ ? index_[i * Mine::down] : n_ + i * Mine::down;
        index_ += listed_ ? S::depth : 0, n_ += S::depth, to_find_ -= S::depth;
    }
    __device__ __forceinline__ void copy(Stage& stage) const {
        left_.copy(stage.left, next_), right_.columns().copy(stage.right, next_);
    }
    __device__ __forceinline__ void prepare() {
        right_.prepare(to_weigh_);
        to_weigh_ -= S::depth;
    }
    __device__ __forceinline__ void finish(Stage& stage) const { right_.finish(stage.right); }
};

}  // namespace hessext::cuda
