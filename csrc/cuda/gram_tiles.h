// Tiles of sums over pairs of samples: the operands of a block, and the sums over its products.
#pragma once

#include "mainloop.h"
#include "small_stages.h"

namespace hessext::cuda {

template <class T>
using GramShape = Shape<T, sizeof(T) == 4 ? 64 : 32, 2, 2>;

// Both sides of a tile. Classes are the depth, and samples the columns. The stages are those of a list, or all.
template <class T, class S>
class ClassMajorOperands {
    const T *left_, *right_;  // of this lane's first sample, at class `begin`
    const i64 left_ld_, right_ld_;
    const int left_count_, right_count_, depth_;
    const StageList* list_;
    int stage_ = 0;
    T values_[2][S::stage_rows][S::lane_cols];

  public:
    __device__ __forceinline__ ClassMajorOperands(const Gram<T>& g, i64 begin, i64 end, i64 row0, i64 col0,
                                                  const StageList* list = nullptr)
        : left_(g.left + begin * g.left_ld + row0 + S::stage_col()),
          right_(g.right + begin * g.right_ld + col0 + S::stage_col()),
          left_ld_(g.left_ld),
          right_ld_(g.right_ld),
          left_count_(int(least<i64>(g.rows - row0, S::side)) - S::stage_col()),
          right_count_(int(least<i64>(g.cols - col0, S::side)) - S::stage_col()),
          depth_(int(end - begin)),
          list_(list) {}

    __device__ __forceinline__ void prepare(int stage) { stage_ = list_ ? list_->stage[stage] : stage; }
    __device__ __forceinline__ void fetch() {
#pragma unroll
        for (int i = 0; i < S::stage_rows; ++i) {
            const int k = stage_ * S::depth + S::stage_row(i);
            const T *left = left_ + k * left_ld_, *right = right_ + k * right_ld_;
#pragma unroll
            for (int c = 0; c < S::lane_cols; ++c) {
                const int e = c * warp_size;
                values_[0][i][c] = k < depth_ && e < left_count_ ? left[e] : T(0);
                values_[1][i][c] = k < depth_ && e < right_count_ ? right[e] : T(0);
            }
        }
    }
    __device__ __forceinline__ void store(typename S::Stage& stage) const {
#pragma unroll
        for (int i = 0; i < S::stage_rows; ++i)
#pragma unroll
            for (int c = 0; c < S::lane_cols; ++c) {
                stage.left[S::stage_row(i)][S::stage_col() + c * warp_size] = values_[0][i][c];
                stage.right[S::stage_row(i)][S::stage_col() + c * warp_size] = values_[1][i][c];
            }
    }
};

// The power of two by which sample n is divided, or 1.
__device__ __forceinline__ double power(const double* powers, i64 n) { return powers ? powers[n] : 1; }

// How often a pair of samples counts. In a triangle pairs n < n' count twice, and pairs n > n' are absent.
template <class T>
__device__ __forceinline__ double times(const Gram<T>& g, i64 n, i64 m) {
    if (n >= g.rows || m >= g.cols || (g.triangle && n > m)) return 0;
    return g.triangle && n < m ? 2 : 1;
}

// Returns the summand W value, and adds the value to its place in a matrix, each if it is not null.
template <class T>
__device__ __forceinline__ double summand(const Gram<T>& g, double* matrix, i64 n, i64 m, double value) {
    if (matrix) matrix[n * g.cols + m] += value;
    return g.weight ? double(g.weight[n * g.cols + m]) * value : 0;
}

// The tiles of the matrix over pairs of samples.
template <class T>
HESSEXT_HOST_DEVICE inline Grid tiles_of(const Gram<T>& g, i64 side) {
    return {ceil_div(g.rows, side), ceil_div(g.cols, side), g.triangle};
}

// The sums of each block of a launch: both sums of the result, and the parts of them that are rounded products.
struct Partial {
    static constexpr int sums = 4;

    template <class... V>
    static __device__ __forceinline__ void put(double* partial, V... sum) {  // the last ones only if they are read
        double* mine = partial + sums * i64(blockIdx.x);
        ((*mine++ = sum), ...);
    }
    template <class... V>
    static __device__ __forceinline__ void add(double* partial, V... sum) {
        double* mine = partial + sums * i64(blockIdx.x);
        ((*mine++ += sum), ...);
    }
};

// One block per tile: the sum of W left^T right. Registers are left for four blocks: with more of them the compiler
// spills.
template <class T, class S, bool tensor>
__global__ void __launch_bounds__(S::threads, 4) gram_tiles(Gram<T> g, i64 span, double* partial) {
    TileMemory<T, S>& memory = shared<TileMemory<T, S>>();
    const Pair place = tiles_of(g, S::side).at(blockIdx.x);
    const i64 row0 = place.first * S::side, col0 = place.second * S::side;
    Sums<T, S> sums;
    double total = 0;
    for (i64 from = 0; from < g.depth; from += span) {
        const i64 to = least(from + span, g.depth);
        ClassMajorOperands<T, S> rows(g, from, to, row0, col0);
        mainloop(rows, int(to - from + S::depth - 1) / S::depth, memory.stages,
                 [&](const typename S::Stage& stage) { sums.template add<tensor>(stage); });
        sums.template each_coalesced<false>(memory.staging, [&](T v, int r, int c) {
            const i64 n = row0 + r, m = col0 + c;
            if (const double count = times(g, n, m); count != 0)
                total += count * summand(g, g.on, n, m, power(g.left_power, n) * power(g.right_power, m) * double(v));
        });
        sums.clear();
    }
    total = block_sum(total, memory.block_sum);
    if (threadIdx.x == 0) Partial::put(partial, total, 0.);
}

template <class T, class S>
struct ListedMemory {
    TileMemory<T, S> tile;
    StageList list;
};

// The same for a softmax, without the small stages: products += p p'^T, the sum of W s s'^T with s = p (1 - p), and the
// sum of W q q'^T with q = p^2.
template <class T, class S, bool tensor>
__global__ void __launch_bounds__(S::threads)
    softmax_gram_tiles(Gram<T> g, SmallStages small, i64 span, double* partial) {
    constexpr bool rounds = tensor && sizeof(T) == sizeof(float);
    TileMemory<T, S>& memory = shared<ListedMemory<T, S>>().tile;
    StageList& list = shared<ListedMemory<T, S>>().list;
    using Part = Sums<T, S>;
    const Pair place = tiles_of(g, S::side).at(blockIdx.x);
    const i64 row0 = place.first * S::side, col0 = place.second * S::side;
    T left_power[Part::thread_rows], right_power[Part::template thread_cols<tensor>];
    for (int e = 0; e < Part::thread_rows; ++e)
        left_power[e] = T(power(g.left_power, least(row0 + Part::row_of(e), g.rows - 1)));
    for (int e = 0; e < Part::template thread_cols<tensor>; ++e)
        right_power[e] = T(power(g.right_power, least(col0 + Part::template col_of<tensor>(e), g.cols - 1)));

    Part p, s, q;
    double on = 0, squares = 0;
    for (i64 from = 0; from < g.depth; from += span) {
        const i64 to = least(from + span, g.depth);
        int stages = int(to - from + S::depth - 1) / S::depth;
        if constexpr (rounds) stages = list.fill(small, place, from / S::depth, stages, false);
        if (!stages) continue;
        ClassMajorOperands<T, S> rows(g, from, to, row0, col0, rounds ? &list : nullptr);
        mainloop(rows, stages, memory.stages, [&](const typename S::Stage& stage) {
            p.template add<tensor>(stage);
            s.template add<tensor>(
                stage, [&](T v, int e) { return v - left_power[e] * (v * v); },
                [&](T v, int e) { return v - right_power[e] * (v * v); });
            q.template add<tensor>(stage, [](T v, int) { return v * v; }, [](T v, int) { return v * v; });
        });
        const auto down = [&](i64 n, i64 m) { return power(g.left_power, n) * power(g.right_power, m); };
        p.template each_coalesced<false>(memory.staging, [&](T v, int r, int c) {
            const i64 n = row0 + r, m = col0 + c;
            if (times(g, n, m) != 0) g.products[n * g.cols + m] += down(n, m) * double(v);
        });
        s.template each_coalesced<false>(memory.staging, [&](T v, int r, int c) {
            const i64 n = row0 + r, m = col0 + c;
            if (const double count = times(g, n, m); count != 0)
                on += count * summand(g, g.on, n, m, down(n, m) * double(v));
        });
        q.template each_coalesced<false>(memory.staging, [&](T v, int r, int c) {
            const i64 n = row0 + r, m = col0 + c;
            if (const double count = times(g, n, m); count != 0)
                squares -= count * summand(g, g.off, n, m, -down(n, m) * down(n, m) * double(v));
        });
        p.clear(), s.clear(), q.clear();
    }
    on = block_sum(on, memory.block_sum);
    squares = block_sum(squares, memory.block_sum);
    if (threadIdx.x == 0) Partial::put(partial, on, squares, 0., 0.);
}

// Adds the products of a small stage: p p' in full precision, and q p', p q' and q q' each as one product of rounded
// numbers on tensor cores.
template <class S>
__device__ __forceinline__ void add_small(const typename S::Stage& stage, Sums<float, S>& p, Sums<float, S>& left,
                                          Sums<float, S>& right, Sums<float, S>& both) {
    const Lane lane;
    // Tensor cores ignore the 13 lowest bits.
    const auto rounded_square = [](float v) { return __uint_as_float(__float_as_uint(v * v) + 0x1000u); };
#pragma unroll 1
    for (int k = 0; k < S::depth; k += 8) {
        const float* rows = &stage.left[k + lane.t][S::first_row() + lane.g];
        const float* columns = &stage.right[k + lane.t][S::first_col() + lane.g];
        float column[S::mma_cols][2], column_square[S::mma_cols][2];
#pragma unroll
        for (int j = 0; j < S::mma_cols; ++j)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                column[j][h] = columns[8 * j + 4 * h * S::ld];
                column_square[j][h] = rounded_square(column[j][h]);
            }
#pragma unroll
        for (int i = 0; i < S::mma_rows; ++i) {
            float row[4], row_square[4];
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                row[e] = rows[16 * i + e % 2 * 8 + e / 2 * 4 * S::ld];
                row_square[e] = rounded_square(row[e]);
            }
            const Fragment<float, 4> a[1] = {Fragment<float, 4>(row)};
            Fragment<float, 2> b[1][S::mma_cols];
#pragma unroll
            for (int j = 0; j < S::mma_cols; ++j) b[0][j] = Fragment<float, 2>(column[j]);
            multiply_add<1, S::mma_cols>(p.value[i], a, b);
#pragma unroll
            for (int j = 0; j < S::mma_cols; ++j) {
                multiply_16x8x8(left.value[i][j], row_square, b[0][j].high);
                multiply_16x8x8(right.value[i][j], a[0].high, column_square[j]);
                multiply_16x8x8(both.value[i][j], row_square, column_square[j]);
            }
        }
    }
}

// The sums of `softmax_gram_tiles` over the small stages, with s s' = p p' - q p' - p q' + q q'.
template <class S>
__global__ void __launch_bounds__(S::threads)
    softmax_gram_small_tiles(Gram<float> g, SmallStages small, i64 span, double* partial) {
    TileMemory<float, S>& memory = shared<ListedMemory<float, S>>().tile;
    StageList& list = shared<ListedMemory<float, S>>().list;
    const Pair place = tiles_of(g, S::side).at(blockIdx.x);
    const i64 row0 = place.first * S::side, col0 = place.second * S::side;
    Sums<float, S> p, left, right, both;
    if (threadIdx.x == 0) Partial::put(partial, 0., 0., 0., 0.);
    for (i64 from = 0; from < g.depth; from += span) {
        const i64 to = least(from + span, g.depth);
        const int stages = list.fill(small, place, from / S::depth, int(to - from + S::depth - 1) / S::depth, true);
        if (!stages) continue;
        ClassMajorOperands<float, S> rows(g, from, to, row0, col0, &list);
        mainloop(rows, stages, memory.stages,
                 [&](const typename S::Stage& stage) { add_small<S>(stage, p, left, right, both); });
        double on = 0, rounded_on = 0, rounded_off = 0;
        // Calls f(W c times a sum, the samples' powers) for each entry, where c is how often it counts.
        const auto each = [&](Sums<float, S>& sums, const auto& f) {
            sums.template each_coalesced<false>(memory.staging, [&](float v, int r, int c) {
                const i64 n = row0 + r, m = col0 + c;
                if (const double count = times(g, n, m); count != 0) {
                    const double down = power(g.left_power, n), across = power(g.right_power, m);
                    f(count * double(g.weight[n * g.cols + m]) * (down * across * double(v)), down, across);
                }
            });
            sums.clear();
        };
        p.template each_coalesced<false>(memory.staging, [&](float v, int r, int c) {
            const i64 n = row0 + r, m = col0 + c;
            if (const double count = times(g, n, m); count != 0) {
                const double value = power(g.left_power, n) * power(g.right_power, m) * double(v);
                g.products[n * g.cols + m] += value;
                on += count * double(g.weight[n * g.cols + m]) * value;
            }
        });
        p.clear();
        each(left, [&](double v, double down, double) { rounded_on += down * v; });
        each(right, [&](double v, double, double across) { rounded_on += across * v; });
        each(both,
             [&](double v, double down, double across) { on += down * across * v, rounded_off += down * across * v; });
        // Added here, as sums that outlive the span would take registers from the main loop.
        rounded_on = block_sum(rounded_on, memory.block_sum);
        rounded_off = block_sum(rounded_off, memory.block_sum);
        on = block_sum(on, memory.block_sum) - rounded_on;
        if (threadIdx.x == 0) Partial::add(partial, on, rounded_off, rounded_on, rounded_off);
    }
}

}  // namespace hessext::cuda
