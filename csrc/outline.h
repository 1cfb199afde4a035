// What one assembly runs over, the same on every device: outer pairs, the entries of a tile, and where they lie.
#pragma once

#include "formulas.h"

namespace hessext {

// What the outer pair runs over; the tile runs over the rest of H[i, a; j, b] = sum_n Q_n[i, j] phi_n[a] psi_n[b].
enum class Outer {
    blocks,    // pair (i, j), weight Q_n[i, j]; tile over features (a, b)
    features,  // output part: pair (a, b), weight -c_n phi_n[a] phi_n[b]; tile over classes (i, j) of p_n p_n^T
    mixed,     // cross part: pair (i, b), weight c_n act'_n[i] psi_n[b]; tile over (a, j) of x_n[a] (B_n V)[j, i]
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

    HESSEXT_ANYWHERE i64 outer_rows() const {
        if (replicated) return 1;
        if (outer == Outer::features) return r.left.size();
        return r.part == Part::output ? r.curvature.classes : r.curvature.units;
    }
    HESSEXT_ANYWHERE i64 outer_cols() const {
        if (outer != Outer::blocks) return r.right.size();
        return within ? outer_rows() : r.curvature.classes;
    }
    // Whether only pairs first <= second are computed.
    HESSEXT_ANYWHERE bool outer_triangle() const { return within && (outer == Outer::blocks || r.symmetric); }
    HESSEXT_ANYWHERE i64 pair_count() const {
        if (r.pairs) return r.pair_count;
        return outer_triangle() ? outer_rows() * (outer_rows() + 1) / 2 : outer_rows() * outer_cols();
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
    HESSEXT_ANYWHERE i64 place(bool row, i64 first, i64 second, i64 e) const {
        return place(row ? dense.rows : dense.cols, row, first, second, e);
    }
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
