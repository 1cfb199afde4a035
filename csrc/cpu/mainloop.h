// The loop over the samples of one product left^T diag(weight) right: chunks of samples are packed into panels and
// multiplied.
#pragma once

#include <algorithm>
#include <vector>

#include "../assembly.h"
#include "launch.h"
#include "plan.h"
#include "tile.h"
#include "weights.h"

namespace hessext::cpu {

// One side of the product.
template <class T>
struct Operand {
    const Features<T>* features;  // null: probabilities, or the cross-layer curvature of `unit`
    i64 size;
    i64 unit = -1;
    bool weighted = false;
    i64 patch = -1;  // the column to which `extra` is added
};

// The samples of one outer pair that have a nonzero weight.
template <class T>
struct SampleList {
    i64 count;
    const i64* index;
    const T *weight, *extra;
};

// Memory of one thread for a tile: panels, sums, and the indices of its rows and columns in the result.
template <class T>
struct TileWorkspace {
    T *left, *right, *values;
    double *total, *sums;
    i64 *x, *y;
};

template <class T>
class Mainloop {
    const Outline<T>& outline_;
    const Assembly<T>& r = outline_.r;
    const Curvature<T>& q = r.curvature;
    const Kernels<T>& k;
    Interrupt& interrupt;
    std::vector<T> columns_;  // V^T [m, C], for the cross kind

  public:
    const bool triangle = inner_triangle(r);  // only tile entries (r, c) with r <= c are computed
    Operand<T> left{&r.left, r.left.size()}, right{&r.right, r.right.size()};
    bool flipped;  // left and right are exchanged, for less padding

    Mainloop(const Outline<T>& outline, const Kernels<T>& kernel, Interrupt& interrupt)
        : outline_(outline), k(kernel), interrupt(interrupt) {
        if (outline.outer == Outer::features) left = right = {nullptr, q.classes};
        if (outline.outer == Outer::mixed) {
            right = {nullptr, q.classes, 0};
            columns_ = transposed(q.weight, q.classes, q.rows);
        }
        right.weighted = true;
        const auto padded = [&](i64 a, i64 b) { return round_up(a, k.rows) * round_up(b, k.cols); };
        flipped = !triangle && padded(right.size, left.size) < padded(left.size, right.size);
        if (flipped) std::swap(left, right);
    }

    // Computes the tile of an outer pair from (r0, c0) on.
    void run(Pair pair, const SampleList<T>& s, i64 r0, i64 c0, const Tile<T>& tile,
             const TileWorkspace<T>& work) const {
        Operand<T> a = left, b = right;
        Operand<T>& weighted = a.weighted ? a : b;
        const bool mixed = outline_.outer == Outer::mixed;
        if (mixed) weighted.unit = pair.first;
        if (outline_.extra) weighted.patch = mixed ? pair.second : pair.first;
        if (mixed && !q.probs && !(outline_.extra && pair.first == pair.second))
            outer_product(pair.first, s, r0, c0, tile, work);
        else
            multiply(a, b, s, r0, c0, tile, work);
        if (outline_.outer == Outer::features) replace_diagonal(s, r0, c0, tile, work);
    }

  private:
    void multiply(const Operand<T>& a, const Operand<T>& b, const SampleList<T>& s, i64 r0, i64 c0, const Tile<T>& tile,
                  const TileWorkspace<T>& work) const {
        const i64 rows = round_up(tile.rows, k.rows);
        const LongSum<T> sum(work.values, work.total, rows, round_up(tile.cols, k.cols), tile_ld);
        for (i64 k0 = 0; k0 < s.count && !interrupt.raised(); k0 += chunk) {
            if (k0 && k0 % span == 0) sum.end_span();
            const i64 depth = std::min(chunk, s.count - k0);
            pack(true, a, s, k0, depth, r0, tile.rows, work.left);
            for (i64 c = 0; c < tile.cols; c += slab) {
                const i64 cols = std::min(slab, tile.cols - c);
                if (tile.begin(0) >= c + cols) continue;  // wholly below the diagonal
                pack(false, b, s, k0, depth, c0 + c, cols, work.right);
                k.multiply(depth, work.left, rows / k.rows, work.right, depth * k.cols, round_up(cols, k.cols) / k.cols,
                           work.values + c, tile_ld, triangle ? tile.offset - c : below_all);
            }
        }
        sum.finish();
    }

    // Without softmax B_n V = c_n V is the same for all samples, so that the tile is sum_n weight_n x_n times a column
    // of V.
    void outer_product(i64 unit, const SampleList<T>& s, i64 r0, i64 c0, const Tile<T>& tile,
                       const TileWorkspace<T>& work) const {
        const i64 first = flipped ? c0 : r0, count = flipped ? tile.cols : tile.rows;
        const i64 stored = std::max<i64>(0, std::min(count, r.left.cols - first));
        double* sum = work.sums;
        std::fill_n(sum, count, 0.0);
        for (i64 k = 0; k < s.count; ++k) {
            const double w = s.weight[k];
            const T* x = r.left.data + s.index[k] * r.left.ld + first;
            for (i64 e = 0; e < stored; ++e) sum[e] += w * x[e];
            if (stored < count) sum[stored] += w;  // the feature that is always 1
        }
        const T* column = columns_.data() + unit * q.classes + (flipped ? r0 : c0);
        for (i64 row = 0; row < tile.rows; ++row)
            for (i64 col = 0; col < tile.cols; ++col)
                tile.values[row * tile_ld + col] = T(flipped ? sum[col] * column[row] : sum[row] * column[col]);
    }

    // Entries (j, j) of p p^T become p_j (1 - p_j).
    void replace_diagonal(const SampleList<T>& s, i64 r0, i64 c0, const Tile<T>& tile,
                          const TileWorkspace<T>& work) const {
        const i64 begin = std::max(r0, c0), end = std::min(r0 + tile.rows, c0 + tile.cols);
        if (begin >= end) return;
        std::fill_n(work.sums, end - begin, 0.0);
        k.softmax_diagonal(s.count, q, s.index, s.weight, begin, end - begin, work.sums);
        for (i64 j = begin; j < end; ++j) tile.values[(j - r0) * tile_ld + (j - c0)] = T(work.sums[j - begin]);
    }

    void pack(bool to_left, const Operand<T>& op, const SampleList<T>& s, i64 k0, i64 depth, i64 first, i64 count,
              T* panels) const {
        const i64 width = to_left ? k.rows : k.cols;
        const i64* index = s.index + k0;
        const T *weight = op.weighted ? s.weight + k0 : nullptr, *plus = outline_.extra ? s.extra + k0 : nullptr;
        if (op.unit >= 0) {
            k.pack_cross(to_left, depth, q, op.unit, columns_.data() + op.unit * q.classes, index, weight,
                         op.patch == op.unit ? plus : nullptr, first, count, panels);
            return;
        }
        const Features<T> f = op.features ? *op.features : Features<T>{q.probs, q.classes, q.classes, false};
        const bool all = s.count == r.samples;  // consecutive rows
        const i64 stored = std::max<i64>(0, std::min(count, f.cols - first));
        if (stored)
            k.pack(to_left, depth, all ? f.data + k0 * f.ld : f.data, f.ld, all ? nullptr : index, weight, first,
                   stored, panels);
        const auto column = [&](i64 item) { return panels + item / width * width * depth + item % width; };
        if (stored < count) {  // the feature that is always 1 comes last
            if (stored % width == 0) std::fill_n(panels + stored * depth, width * depth, T(0));
            T* to = column(stored);
            for (i64 e = 0; e < depth; ++e) to[e * width] = weight ? weight[e] : T(1);
        }
        if (plus && op.patch >= first && op.patch < first + count) {
            T* to = column(op.patch - first);
            for (i64 e = 0; e < depth; ++e) to[e * width] += plus[e];
        }
    }
};

}  // namespace hessext::cpu
