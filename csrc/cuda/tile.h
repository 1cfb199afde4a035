// A tile of a product, sum_k left[k, r] right[k, c]: its shape, its stages in shared memory, its sums in registers.
#pragma once

#include "mma.h"
#include "reduce.h"

namespace hessext::cuda {

// side x side entries, shared by `warp_rows x warp_cols` warps. A stage is `depth` deep. Its rows are padded so that
// fragments are read without bank conflicts.
template <class T, int side_, int warp_rows, int warp_cols>
struct Shape {
    static constexpr int side = side_, depth = 16;
    static constexpr int warps = warp_rows * warp_cols, threads = warps * warp_size;
    static constexpr int ld = side + (sizeof(T) == 4 ? 8 : 4);
    static constexpr int rows = side / warp_rows, cols = side / warp_cols;  // entries of a warp
    static constexpr int mma_rows = rows / 16, mma_cols = cols / 8;         // matrix instructions of a warp
    static constexpr int stage_rows = depth / warps;  // rows of a stage that a warp loads, `lane_cols` columns a lane
    static constexpr int lane_cols = side / warp_size;

    struct Stage {
        static constexpr int of_depth = ld, of_row = 1;  // distances
        T left[depth][ld], right[depth][ld];
    };

    // The calling thread loads row i of its warp, from its lane's column on.
    static __device__ __forceinline__ int stage_row(int i) { return int(threadIdx.x) / warp_size + i * warps; }
    static __device__ __forceinline__ int stage_col() { return int(threadIdx.x) % warp_size; }

    // First row and column of the calling warp's part of the tile.
    static __device__ __forceinline__ int first_row() { return int(threadIdx.x) / warp_size / warp_cols * rows; }
    static __device__ __forceinline__ int first_col() { return int(threadIdx.x) / warp_size % warp_cols * cols; }
};

// The same for operands whose depth runs along their rows: a stage has `depth` consecutive entries of each row.
template <class T, int side, int warp_rows, int warp_cols>
struct RowShape : Shape<T, side, warp_rows, warp_cols> {
    static constexpr int ld = RowShape::depth + 4;

    struct Stage {
        static constexpr int of_depth = 1, of_row = ld;
        T left[side][ld], right[side][ld];
    };
};

// Blocks per multiprocessor for which the compiler must leave registers: one of 256 threads may use them all. 0 leaves
// the choice to the compiler.
template <class S>
constexpr int least_blocks = S::threads > 128 ? 1 : 0;

// The entries that a thread holds. They are those of the matrix instructions, also without tensor cores.
template <class T, class S>
struct Sums {
    T value[S::mma_rows][S::mma_cols][4];

    __device__ __forceinline__ Sums() { clear(); }
    __device__ __forceinline__ void clear() {
        each([](T& v, int, int) { v = 0; });
    }

    // Shared memory for 16 x cols entries of a warp, padded so that at most two accesses meet in a bank.
    using Staging = T[16][S::cols + (sizeof(T) == 4 ? 4 : 1)];

    // Calls f(value, row, column) for this thread's entries, in any order.
    template <class F>
    __device__ __forceinline__ void each(const F& f) {
#pragma unroll
        for (int i = 0; i < S::mma_rows; ++i)
            each_of(i, [&](T& v, int r, int c) { f(v, S::first_row() + 16 * i + r, S::first_col() + c); });
    }
    // The same for all entries of the warp, through shared memory, so that neighbouring lanes have neighbours in a row,
    // or in a column. The loop is not unrolled, so that addresses in f take few registers.
    template <bool columns, class F>
    __device__ __forceinline__ void each_coalesced(Staging* of_warps, const F& f) {
        const int lane = int(threadIdx.x) % warp_size;
        Staging& staging = of_warps[int(threadIdx.x) / warp_size];
#pragma unroll
        for (int i = 0; i < S::mma_rows; ++i) {
            each_of(i, [&](T& v, int r, int c) { staging[r][c] = v; });
            __syncwarp();
            // row or column is constant in the loop, and its part of an address is computed once
            if constexpr (columns) {
                const int r = lane % 16;
#pragma unroll 1
                for (int c = lane / 16; c < S::cols; c += warp_size / 16)
                    f(staging[r][c], S::first_row() + 16 * i + r, S::first_col() + c);
            } else {
                static_assert(warp_size % S::cols == 0);
                const int c = lane % S::cols;
#pragma unroll 1
                for (int r = lane / S::cols; r < 16; r += warp_size / S::cols)
                    f(staging[r][c], S::first_row() + 16 * i + r, S::first_col() + c);
            }
            __syncwarp();
        }
    }

    // Adds the product of one stage: of its values, or of left_of(value, e) and right_of(value, e), where e numbers
    // this thread's rows and columns as `row_of` and `col_of` do.
    template <bool tensor, int steps = 1>
    __device__ __forceinline__ void add(const typename S::Stage& stage) {
        const auto same = [](T v, int) { return v; };
        add<tensor, steps>(stage, same, same);
    }
    template <bool tensor, int steps = 1, class Left, class Right>
    __device__ __forceinline__ void add(const typename S::Stage& stage, const Left& left_of, const Right& right_of) {
        const Lane lane;
        if constexpr (tensor) {
#pragma unroll 1  // more steps at once take more registers
            for (int k = 0; k < S::depth; k += 8 * steps) add_on_tensor_cores<steps>(stage, k, lane, left_of, right_of);
        } else {
#pragma unroll 4
            for (int k = 0; k < S::depth; ++k) add_plain(stage, k, lane, left_of, right_of);
        }
    }
    static constexpr int thread_rows = 2 * S::mma_rows;
    static __device__ __forceinline__ int row_of(int e) { return S::first_row() + Lane().g + 8 * e; }
    // The columns that a thread passes to tensor cores are not those whose sums it receives.
    template <bool tensor>
    static constexpr int thread_cols = tensor ? S::mma_cols : 2 * S::mma_cols;
    template <bool tensor>
    static __device__ __forceinline__ int col_of(int e) {
        return S::first_col() + (tensor ? Lane().g + 8 * e : 2 * Lane().t + 8 * (e / 2) + e % 2);
    }

  private:
    // Calls f for part i of the rows, with row and column in the warp's 16 x cols entries.
    template <class F>
    __device__ __forceinline__ void each_of(int i, const F& f) {
        const Lane lane;
#pragma unroll
        for (int j = 0; j < S::mma_cols; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) f(value[i][j][e], lane.g + 8 * (e / 2), 2 * lane.t + 8 * j + e % 2);
    }

    template <int steps, class Left, class Right>
    __device__ __forceinline__ void add_on_tensor_cores(const typename S::Stage& stage, int from, const Lane& lane,
                                                        const Left& left_of, const Right& right_of) {
        using G = typename S::Stage;
        const T* left = &stage.left[0][0] + (from + lane.t) * G::of_depth + (S::first_row() + lane.g) * G::of_row;
        const T* right = &stage.right[0][0] + (from + lane.t) * G::of_depth + (S::first_col() + lane.g) * G::of_row;
        Fragment<T, 2> columns[steps][S::mma_cols];
#pragma unroll
        for (int k = 0; k < steps; ++k)
#pragma unroll
            for (int j = 0; j < S::mma_cols; ++j) {
                T column[2];
#pragma unroll
                for (int h = 0; h < 2; ++h)
                    column[h] = right_of(right[8 * j * G::of_row + (8 * k + 4 * h) * G::of_depth], j);
                columns[k][j] = Fragment<T, 2>(column);
            }
#pragma unroll
        for (int i = 0; i < S::mma_rows; ++i) {
            Fragment<T, 4> rows[steps];
#pragma unroll
            for (int k = 0; k < steps; ++k) {
                T row[4];
#pragma unroll
                for (int e = 0; e < 4; ++e)
                    row[e] = left_of(left[(16 * i + e % 2 * 8) * G::of_row + (8 * k + e / 2 * 4) * G::of_depth],
                                     2 * i + e % 2);
                rows[k] = Fragment<T, 4>(row);
            }
            multiply_add<steps, S::mma_cols>(value[i], rows, columns);
        }
    }

    template <class Left, class Right>
    __device__ __forceinline__ void add_plain(const typename S::Stage& stage, int k, const Lane& lane,
                                              const Left& left_of, const Right& right_of) {
        static_assert(S::Stage::of_row == 1);
        const T* left = &stage.left[k][S::first_row() + lane.g];
        const T* right = &stage.right[k][S::first_col() + 2 * lane.t];
        T columns[2 * S::mma_cols];
#pragma unroll
        for (int e = 0; e < 2 * S::mma_cols; ++e) columns[e] = right_of(right[8 * (e / 2) + e % 2], e);
#pragma unroll
        for (int i = 0; i < 2 * S::mma_rows; ++i) {
            const T row = left_of(left[8 * i], i);
#pragma unroll
            for (int e = 0; e < 2 * S::mma_cols; ++e) value[i / 2][e / 2][i % 2 * 2 + e % 2] += row * columns[e];
        }
    }
};

// The shared memory of a block that forms one tile.
template <class T, class S, int count = 2>
union TileMemory {
    typename S::Stage stages[count];
    typename Sums<T, S>::Staging staging[S::warps];
    BlockSum<S::threads> block_sum;
};

}  // namespace hessext::cuda
