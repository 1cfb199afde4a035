// Sums over pairs of samples: block norms of a layer in the form <Q_n, Q_n'> (phi_n . phi_n')^2.
#include <algorithm>

#include "mainloop.h"

namespace hessext::cuda {
namespace {

template <class T>
using GramShape = Shape<T, sizeof(T) == 4 ? 64 : 32, 2, 2>;
constexpr int tops_threads = 256;

// Both sides of a tile: classes are the depth, samples the columns.
template <class T, class S>
class ClassMajorOperands {
    const T *left_, *right_;  // of this lane's first sample, at class `begin`
    const i64 left_ld_, right_ld_;
    const int left_count_, right_count_, depth_;
    int stage_ = 0;
    T values_[2][S::stage_rows][S::lane_cols];

  public:
    __device__ __forceinline__ ClassMajorOperands(const Gram<T>& g, i64 begin, i64 end, i64 row0, i64 col0)
        : left_(g.left + begin * g.left_ld + row0 + S::stage_col()),
          right_(g.right + begin * g.right_ld + col0 + S::stage_col()),
          left_ld_(g.left_ld),
          right_ld_(g.right_ld),
          left_count_(int(least<i64>(g.rows - row0, S::side)) - S::stage_col()),
          right_count_(int(least<i64>(g.cols - col0, S::side)) - S::stage_col()),
          depth_(int(end - begin)) {}

    __device__ __forceinline__ void prepare(int stage) { stage_ = stage; }
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

// The power of two that sample n is divided by; 1 without any.
__device__ __forceinline__ double power(const double* powers, i64 n) { return powers ? powers[n] : 1; }

// How often an entry of the square of samples counts: in a triangle only n <= n' is there, and n < n' twice.
template <class T>
__device__ __forceinline__ double times(const Gram<T>& g, i64 n, i64 m) {
    if (n >= g.rows || m >= g.cols || (g.triangle && n > m)) return 0;
    return g.triangle && n < m ? 2 : 1;
}

// A summand W value, and the value added to its place in a matrix, of what is there.
template <class T>
__device__ __forceinline__ double summand(const Gram<T>& g, double* matrix, i64 n, i64 m, double value) {
    if (matrix) matrix[n * g.cols + m] += value;
    return g.weight ? double(g.weight[n * g.cols + m]) * value : 0;
}

// Tiles of the square of samples.
template <class T>
HESSEXT_HOST_DEVICE inline Grid tiles_of(const Gram<T>& g, i64 side) {
    return {ceil_div(g.rows, side), ceil_div(g.cols, side), g.triangle};
}

// One block per tile: sum of W left^T right.
template <class T, class S, bool tensor>
__global__ void __launch_bounds__(S::threads) gram_tiles(Gram<T> g, i64 span, double* partial) {
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
    if (threadIdx.x == 0) partial[2 * blockIdx.x] = total, partial[2 * blockIdx.x + 1] = 0;
}

// The same for a softmax: products += p p'^T, sum of W s s'^T with s = p (1 - p), sum of W q q'^T with q = p^2.
template <class T, class S, bool tensor>
__global__ void __launch_bounds__(S::threads) softmax_gram_tiles(Gram<T> g, i64 span, double* partial) {
    TileMemory<T, S>& memory = shared<TileMemory<T, S>>();
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
        ClassMajorOperands<T, S> rows(g, from, to, row0, col0);
        mainloop(rows, int(to - from + S::depth - 1) / S::depth, memory.stages, [&](const typename S::Stage& stage) {
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
    if (threadIdx.x == 0) partial[2 * blockIdx.x] = on, partial[2 * blockIdx.x + 1] = squares;
}

// What the top classes of both samples add; a thread has several entries.
template <class T>
__global__ void __launch_bounds__(tops_threads)
    gram_top_pairs(Gram<T> g, Tops<T> left, Tops<T> right, double* partial) {
    double on = 0, off = 0;
    for (i64 e = i64(blockIdx.x) * tops_threads + threadIdx.x; e < g.rows * g.cols;
         e += i64(gridDim.x) * tops_threads) {
        const i64 n = e / g.cols, m = e % g.cols;
        const double count = times(g, n, m);
        if (count == 0) continue;
        const TopSums sums = top_sums(g, left, right, n, m, power(g.left_power, n), power(g.right_power, m));
        on += count * summand(g, g.on, n, m, sums.on), off += count * summand(g, g.off, n, m, sums.off);
    }
    on = block_sum(on, shared<BlockSum<tops_threads>>());
    off = block_sum(off, shared<BlockSum<tops_threads>>());
    if (threadIdx.x == 0) partial[2 * blockIdx.x] = on, partial[2 * blockIdx.x + 1] = off;
}

// sums[e] += those of all blocks, in order.
__global__ void __launch_bounds__(tops_threads) add_partial(const double* partial, i64 count, double* sums) {
    for (int e = 0; e < 2; ++e) {
        double total = 0;
        for (i64 b = threadIdx.x; b < count; b += tops_threads) total += partial[2 * b + e];
        total = block_sum(total, shared<BlockSum<tops_threads>>());
        if (threadIdx.x == 0) sums[e] += total;
    }
}

constexpr i64 most_top_blocks = 4096;

// Room for both sums of each block.
double* partial_sums(i64 blocks, const Stream& stream) {
    return static_cast<double*>(stream.workspace(2 * i64(sizeof(double)) * blocks));
}

void add(const double* partial, i64 count, double* sums, const Stream& stream) {
    launch<add_partial>(1, tops_threads, sizeof(BlockSum<tops_threads>), stream, partial, count, sums);
}

template <class T, bool tensor>
void launch_tiles(const Gram<T>& g, i64 tiles, double* partial, const Stream& stream) {
    using S = GramShape<T>;
    static_assert(sizeof(TileMemory<T, S>) <= most_shared);
    if (g.products)
        launch<softmax_gram_tiles<T, S, tensor>>(tiles, S::threads, sizeof(TileMemory<T, S>), stream, g, span(tensor),
                                                 partial);
    else
        launch<gram_tiles<T, S, tensor>>(tiles, S::threads, sizeof(TileMemory<T, S>), stream, g, span(tensor), partial);
}

}  // namespace

template <class T>
void gram_sums(const Gram<T>& g, double* sums, const Stream& stream) {
    use_device(stream);
    const i64 tiles = tiles_of(g, GramShape<T>::side).count();
    double* partial = partial_sums(tiles, stream);
    tensor_cores(stream, sizeof(T)) ? launch_tiles<T, true>(g, tiles, partial, stream)
                                    : launch_tiles<T, false>(g, tiles, partial, stream);
    add(partial, tiles, sums, stream);
}

template <class T>
void gram_tops(const Gram<T>& g, const Tops<T>& left, const Tops<T>& right, double* sums, const Stream& stream) {
    use_device(stream);
    const i64 blocks = std::min(ceil_div(g.rows * g.cols, 8 * tops_threads), most_top_blocks);
    double* partial = partial_sums(blocks, stream);
    launch<gram_top_pairs<T>>(blocks, tops_threads, sizeof(BlockSum<tops_threads>), stream, g, left, right, partial);
    add(partial, blocks, sums, stream);
}

HESSEXT_INSTANTIATE(gram_sums)
HESSEXT_INSTANTIATE(gram_tops)

}  // namespace hessext::cuda
