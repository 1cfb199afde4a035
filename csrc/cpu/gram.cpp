// Sums over pairs of samples: block norms of a layer in the form <Q_n, Q_n'> (phi_n . phi_n')^2.
#include <omp.h>

#include <vector>

#include "launch.h"
#include "plan.h"
#include "workspace.h"

namespace hessext::cpu {
namespace {

constexpr i64 gram_rows = tile_rows / 2, gram_cols = tile_cols / 2, gram_ld = gram_cols + 8;
template <class T>
constexpr i64 gram_chunk = chunk * i64(sizeof(float)) / i64(sizeof(T));  // four panels share the second-level cache

// Where a tile lies in the square of samples; in a triangle only n <= n' is summed, and n < n' twice.
struct Square {
    i64 r0, c0, rows, cols;
    bool triangle;

    i64 begin(i64 r) const { return triangle ? std::max<i64>(0, r0 + r - c0) : 0; }
    double times(i64 r, i64 c) const { return triangle && r0 + r != c0 + c ? 2 : 1; }
};

// What the samples of a tile are divided by: powers of two, exact in both types; 1 without any.
template <class T>
struct Powers {
    double down[gram_rows], across[gram_cols];
    T left[gram_rows] = {}, right[gram_cols] = {};  // as panels have them, padded

    Powers(const Gram<T>& g, const Square& at) {
        for (i64 r = 0; r < at.rows; ++r) left[r] = T(down[r] = g.left_power ? g.left_power[at.r0 + r] : 1);
        for (i64 c = 0; c < at.cols; ++c) right[c] = T(across[c] = g.right_power ? g.right_power[at.c0 + c] : 1);
    }
    double of(i64 r, i64 c) const { return down[r] * across[c]; }
};

// to += times * tile, or that of what is divided by squares of the powers
template <class T>
void add(const Gram<T>& g, const Square& at, const Powers<T>& powers, const T* tile, bool squares, double times,
         double* to) {
    if (!to) return;
    for (i64 r = 0; r < at.rows; ++r) {
        double* row = to + (at.r0 + r) * g.cols + at.c0;
        for (i64 c = at.begin(r); c < at.cols; ++c) {
            const double power = powers.of(r, c);
            row[c] += times * (squares ? power * power : power) * double(tile[r * gram_ld + c]);
        }
    }
}

// sum W tile, or of what is divided by squares of the powers
template <class T>
double weighted(const Gram<T>& g, const Square& at, const Powers<T>& powers, const T* tile, bool squares) {
    double sum = 0;
    if (!g.weight) return sum;
    for (i64 r = 0; r < at.rows; ++r) {
        const T *w = g.weight + (at.r0 + r) * g.cols + at.c0, *value = tile + r * gram_ld;
        const i64 begin = at.begin(r);
        const double down = squares ? powers.down[r] * powers.down[r] : powers.down[r];
        double row = 0;
        for (i64 c = begin; c < at.cols; ++c) {
            const double across = squares ? powers.across[c] * powers.across[c] : powers.across[c];
            row += at.times(r, c) * across * double(w[c]) * double(value[c]);
        }
        sum += down * row;
    }
    return sum;
}

// The tiles of the square, in parallel; their sums are added in a fixed order.
template <class T, class Job>
void for_tiles(const Gram<T>& g, double* sums, int threads, const Job& job) {
    std::vector<Square> tiles;
    for (i64 r0 = 0; r0 < g.rows; r0 += gram_rows)
        for (i64 c0 = 0; c0 < g.cols; c0 += gram_cols)
            if (!g.triangle || r0 < c0 + gram_cols)
                tiles.push_back(
                    {r0, c0, std::min(gram_rows, g.rows - r0), std::min(gram_cols, g.cols - c0), g.triangle});
    std::vector<double> partial(2 * tiles.size());
    Interrupt interrupt;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        const FlushDenormals flush;
#pragma omp for schedule(dynamic)
        for (i64 t = 0; t < i64(tiles.size()); ++t)
            if (!interrupt.raised()) job(tiles[t], omp_get_thread_num(), &partial[2 * t]);
    }
    interrupt.check();
    for (std::size_t t = 0; t < tiles.size(); ++t)
        for (i64 e = 0; e < 2; ++e) sums[e] += partial[2 * t + e];
}

}  // namespace

template <class T>
void gram_sums(const Gram<T>& g, double* sums, const By& by) {
    const Kernels<T>& k = kernels<T>();
    const bool softmax = g.products;
    const int threads = team(by.count, double(g.rows) * double(g.cols) * double(g.depth));
    const i64 depth = std::min(gram_chunk<T>, g.depth);
    const i64 left_size = gram_rows * depth, right_size = gram_cols * depth, tile_size = gram_rows * gram_ld;
    const i64 size = (softmax ? 2 : 1) * (left_size + right_size) + (softmax ? 3 : 1) * tile_size;
    Buffer<T> work(threads * size);

    for_tiles(g, sums, threads, [&](const Square& at, int thread, double* sum) {
        T *left = work.get() + thread * size, *right = left + left_size;
        T *left_square = right + right_size, *right_square = left_square + (softmax ? left_size : 0);
        T* tile = right_square + (softmax ? right_size : 0);  // of p p', s s', q q'
        const Powers<T> powers(g, at);
        const i64 row_panels = round_up(at.rows, k.rows) / k.rows, col_panels = round_up(at.cols, k.cols) / k.cols;
        const auto multiply = [&](i64 deep, const T* a, const T* b, i64 form) {
            k.multiply(deep, a, row_panels, b, deep * k.cols, col_panels, tile + form * tile_size, gram_ld,
                       at.triangle ? at.r0 - at.c0 : below_all);
        };
        for (i64 from = 0; from < g.depth; from += span) {
            std::fill_n(tile, (softmax ? 3 : 1) * tile_size, T(0));
            const i64 end = std::min(from + span, g.depth);
            for (i64 k0 = from; k0 < end; k0 += gram_chunk<T>) {
                const i64 deep = std::min(gram_chunk<T>, end - k0);
                k.pack(true, deep, g.left + k0 * g.left_ld, g.left_ld, nullptr, nullptr, at.r0, at.rows, left);
                k.pack(false, deep, g.right + k0 * g.right_ld, g.right_ld, nullptr, nullptr, at.c0, at.cols, right);
                multiply(deep, left, right, 0);
                if (!softmax) continue;
                k.softmax_split(true, deep, row_panels, powers.left, left, left_square);
                k.softmax_split(false, deep, col_panels, powers.right, right, right_square);
                multiply(deep, left, right, 1);
                multiply(deep, left_square, right_square, 2);
            }
            const T* diagonal = tile + (softmax ? tile_size : 0);
            add(g, at, powers, diagonal, false, 1, g.on);
            sum[0] += weighted(g, at, powers, diagonal, false);
            if (!softmax) continue;
            add(g, at, powers, tile, false, 1, g.products);
            add(g, at, powers, tile + 2 * tile_size, true, -1, g.off);
            sum[1] += weighted(g, at, powers, tile + 2 * tile_size, true);
        }
    });
}

template <class T>
void gram_tops(const Gram<T>& g, const Tops<T>& left, const Tops<T>& right, double* sums, const By& by) {
    const int threads = team(by.count, 8 * double(g.rows) * double(g.cols));
    for_tiles(g, sums, threads, [&](const Square& at, int, double* sum) {
        const Powers<T> powers(g, at);
        for (i64 r = 0; r < at.rows; ++r)
            for (i64 c = at.begin(r); c < at.cols; ++c) {
                const i64 n = at.r0 + r, m = at.c0 + c;
                const TopSums tops = top_sums(g, left, right, n, m, powers.down[r], powers.across[c]);
                if (g.on) g.on[n * g.cols + m] += tops.on;
                if (g.off) g.off[n * g.cols + m] += tops.off;
                if (!g.weight) continue;
                const double w = at.times(r, c) * double(g.weight[n * g.cols + m]);
                sum[0] += w * tops.on;
                sum[1] += w * tops.off;
            }
    });
}

HESSEXT_INSTANTIATE(gram_sums)
HESSEXT_INSTANTIATE(gram_tops)

}  // namespace hessext::cpu
