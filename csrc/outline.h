// What one assembly runs over, the same on every device: outer pairs, the entries of a tile, and where they lie.
#pragma once

#include <cmath>

#include "formulas.h"

namespace hessext {

// What the outer pair runs over; the tile runs over the rest of H[i, a; j, b] = sum_n Q_n[i, j] phi_n[a] psi_n[b].
enum class Outer {
    blocks,    // pair (i, j), weight Q_n[i, j]; tile over features (a, b)
    features,  // output part: pair (a, b), weight -c_n phi_n[a] phi_n[b]; tile over classes (i, j) of p_n p_n^T
    mixed,     // cross part: pair (i, b), weight c_n act'_n[i] psi_n[b]; tile over (a, j) of x_n[a] (B_n V)[j, i]
};

struct Pair {
    i64 first, second;
};

// Weights of the pairs (a, b) of Outer::features and (i, b) of Outer::mixed in sample n.
template <class T>
HESSEXT_ANYWHERE inline T features_weight(const Assembly<T>& r, i64 n, i64 a, i64 b) {
    return -r.curvature.scale[n] * feature(r.left, n, a) * feature(r.right, n, b);
}
template <class T>
HESSEXT_ANYWHERE inline T mixed_weight(const Assembly<T>& r, i64 n, i64 i, i64 b) {
    const Curvature<T>& q = r.curvature;
    return q.scale[n] * q.slope[n * q.units + i] * feature(r.right, n, b);
}

// What the residual r_n[j] act'_n[i] x_n e_i^T adds: for a pair (i, b) act'_n[i] where b = i, for (i, j) both factors.
template <class T>
HESSEXT_ANYWHERE inline T residual_weight(const Curvature<T>& q, Outer outer, i64 n, i64 i, i64 j) {
    const T slope = q.slope[n * q.units + i];
    if (outer == Outer::mixed) return i == j ? slope : T(0);
    return slope * q.residual[n * q.classes + j];
}

// Pairs of rows x cols, or those first <= second of a square, numbered row by row.
struct Grid {
    i64 rows, cols;
    bool triangle;

    HESSEXT_ANYWHERE i64 count() const { return triangle ? rows * (rows + 1) / 2 : rows * cols; }
    HESSEXT_ANYWHERE Pair at(i64 t) const {
        if (!triangle) return {t / cols, t % cols};
        const double b = 2 * double(rows) + 1;
        i64 i = i64((b - std::sqrt(b * b - 8 * double(t))) / 2);  // up to rounding
        while (i * rows - i * (i - 1) / 2 > t) --i;
        while ((i + 1) * rows - (i + 1) * i / 2 <= t) ++i;
        return {i, i + t - (i * rows - i * (i - 1) / 2)};
    }
};

template <class T>
struct Outline {
    Assembly<T> r;
    Outer outer;
    bool within;
    // Without softmax all output blocks (i, i) are one and the same and the others are zero (the caller's part).
    bool replicated;
    bool extra;      // the residual part of the cross layer is added
    Dense<T> dense;  // blocks are small dense matrices of their own

    Outline(const Assembly<T>& request, Outer outer)
        : r(request),
          outer(outer),
          within(r.part != Part::cross),
          replicated(r.part == Part::output && !r.curvature.probs),
          extra(r.part == Part::cross && r.curvature.residual && r.right.cols > 0),
          dense(destination(r)) {}

    // Whether only pairs first <= second are computed.
    HESSEXT_ANYWHERE bool outer_triangle() const { return within && (outer == Outer::blocks || r.symmetric); }
    HESSEXT_ANYWHERE Grid grid() const {
        const i64 blocks = replicated ? 1 : r.part == Part::output ? r.curvature.classes : r.curvature.units;
        const i64 rows = outer == Outer::features ? r.left.size() : blocks;
        const i64 cols = outer != Outer::blocks ? r.right.size() : within ? blocks : r.curvature.classes;
        return {rows, cols, outer_triangle()};
    }
    HESSEXT_ANYWHERE i64 pair_count() const { return r.pairs ? r.pair_count : grid().count(); }
    HESSEXT_ANYWHERE Pair pair(i64 t) const {
        return r.pairs ? Pair{r.pairs[2 * t], r.pairs[2 * t + 1]} : grid().at(t);
    }

    // Destination of block `pair` of a list, or of the whole matrix.
    HESSEXT_ANYWHERE T* base(i64 pair) const {
        return r.blocks ? dense.out + pair * r.left.size() * r.right.size() : dense.out;
    }

    // How often a pair's tile is written: for blocks (i, j) and (j, i), or for all replicas.
    HESSEXT_ANYWHERE i64 copies(i64 first, i64 second) const {
        if (replicated && r.dense.out) return r.curvature.classes;
        return r.dense.out && outer_triangle() && first != second ? 2 : 1;
    }

    // Row (or column) of the result that tile entry e of the pair (first, second) lies in.
    HESSEXT_ANYWHERE i64 place(const Axis& axis, bool row, i64 first, i64 second, i64 e) const {
        const i64 of_pair = row ? first : second;
        return tile_is_features(row) ? axis.at(of_pair, e) : axis.at(e, of_pair);
    }
    HESSEXT_ANYWHERE bool tile_is_features(bool row) const {
        return outer == Outer::blocks || (outer == Outer::mixed && row);
    }

  private:
    static Dense<T> destination(const Assembly<T>& r) {
        if (r.dense.out) return r.dense;
        const auto axis = [](const Features<T>& f) { return Axis{0, 0, f.cols, 0, f.cols}; };
        return {r.blocks,      r.transposed ? r.left.size() : r.right.size(),
                axis(r.left),  axis(r.right),
                !r.transposed, r.transposed || r.symmetric};
    }
};

}  // namespace hessext
