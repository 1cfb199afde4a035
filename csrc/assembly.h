// The index ranges of one assembly, the same on every device: its outer pairs, their weights, and the addresses of the
// entries of a tile.
#pragma once

#include <cmath>

#include "curvature.h"

namespace hessext {

// The indices of the outer pair. The tile runs over the other indices of H[i, a; j, b] = sum_n Q_n[i, j] phi_n[a]
// psi_n[b].
enum class Outer {
    blocks,    // pair (i, j), weight Q_n[i, j]; tile over features (a, b)
    features,  // output kind: pair (a, b), weight -c_n phi_n[a] phi_n[b]; tile over classes (i, j) of p_n p_n^T
    mixed,     // cross kind: pair (i, b), weight c_n act'_n[i] psi_n[b]; tile over (a, j) of x_n[a] (B_n V)[j, i]
};

struct Pair {
    i64 first, second;
};

// The pairs of rows x cols, or with `triangle` those with first <= second of a square, numbered row by row.
struct Grid {
    i64 rows, cols;
    bool triangle;

    HESSEXT_HOST_DEVICE i64 count() const { return triangle ? rows * (rows + 1) / 2 : rows * cols; }
    HESSEXT_HOST_DEVICE Pair at(i64 t) const {
        if (!triangle) return {t / cols, t % cols};
        const double b = 2 * double(rows) + 1;
        i64 i = i64((b - std::sqrt(b * b - 8 * double(t))) / 2);  // up to rounding
        while (number({i, i}) > t) --i;
        while (number({i + 1, i + 1}) <= t) ++i;
        return {i, i + t - number({i, i})};
    }
    HESSEXT_HOST_DEVICE i64 number(Pair p) const {
        if (!triangle) return p.first * cols + p.second;
        return p.first * rows - p.first * (p.first - 1) / 2 + p.second - p.first;
    }
};

// Whether a tile over features needs only entries a <= b. The others are equal to these, in the same block or in that
// of the mirrored pair.
template <class T>
HESSEXT_HOST_DEVICE inline bool inner_triangle(const Assembly<T>& r) {
    return r.same_features && (r.curvature.symmetric || !r.dense.out);
}

// Whether the residual between neighbouring layers is added.
template <class T>
HESSEXT_HOST_DEVICE inline bool adds_residual(const Assembly<T>& r) {
    return r.curvature.residual && r.right.cols > 0;
}

template <class T>
struct Outline {
    Assembly<T> r;
    Outer outer;
    // Without softmax all output blocks (i, i) are equal, and the others are zero, which the caller writes.
    bool replicated;
    bool extra;      // adds_residual
    Dense<T> dense;  // the destination; blocks of a list are small dense matrices

    Outline(const Assembly<T>& request, Outer outer)
        : r(request),
          outer(outer),
          replicated(!r.pairs && r.curvature.kind == Kind::output && !r.curvature.probs),
          extra(adds_residual(r)),
          dense(destination(r)) {}

    // --------------------------------------------------------------------------------------------- outer pairs

    // Whether only pairs first <= second are computed.
    HESSEXT_HOST_DEVICE bool outer_triangle() const {
        return r.curvature.symmetric && (outer == Outer::blocks || r.same_features);
    }
    HESSEXT_HOST_DEVICE Grid grid() const {
        const i64 rows = outer == Outer::features ? r.left.size() : replicated ? 1 : r.curvature.rows;
        const i64 cols = outer != Outer::blocks ? r.right.size() : replicated ? 1 : r.curvature.cols;
        return {rows, cols, outer_triangle()};
    }
    HESSEXT_HOST_DEVICE i64 pair_count() const { return r.pairs ? r.pair_count : grid().count(); }
    HESSEXT_HOST_DEVICE Pair pair(i64 t) const {
        return r.pairs ? Pair{r.pairs[2 * t], r.pairs[2 * t + 1]} : grid().at(t);
    }

    // Calls f once with a function n -> weight of pair `t` in sample n. Only the hidden kind calls covariance(n), which
    // `hidden_curvature` takes.
    template <class Covariance, class F>
    HESSEXT_HOST_DEVICE void with_weight(i64 t, Pair p, const Covariance& covariance, const F& f) const {
        const Curvature<T>& q = r.curvature;
        const i64 i = p.first, j = p.second;
        if (q.kind == Kind::given) {
            const T* entries = q.entries + (r.pairs ? t : grid().number(p)) * r.samples;
            f([=](i64 n) { return entries[n]; });
        } else if (q.kind == Kind::hidden) {
            f([&](i64 n) { return hidden_curvature(q, n, i, j, covariance(n)); });
        } else if (!q.gauss_newton) {
            f([](i64) { return T(0); });
        } else if (outer == Outer::features) {
            f([&](i64 n) { return -q.scale[n] * feature(r.left, n, i) * feature(r.right, n, j); });
        } else if (outer == Outer::mixed) {
            f([&](i64 n) { return q.scale[n] * q.slope[n * q.rows + i] * feature(r.right, n, j); });
        } else if (q.kind == Kind::output) {
            f([&](i64 n) { return output_curvature(q, n, i, j); });
        } else {
            f([&](i64 n) { return cross_curvature(q, n, i, j); });
        }
    }

    // The weight of the residual term r_n[j] act'_n[i] x_n e_i^T: for a pair (i, j) both factors, and for a pair (i, b)
    // act'_n[i] if b = i.
    HESSEXT_HOST_DEVICE T residual_weight(i64 n, Pair p) const {
        const Curvature<T>& q = r.curvature;
        const T slope = q.slope[n * q.rows + p.first];
        if (outer == Outer::mixed) return p.first == p.second ? slope : T(0);
        return slope * q.residual[n * q.cols + p.second];
    }

    // --------------------------------------------------------------------------------------- places of entries

    // Destination of block `t` of a list, or of the whole matrix.
    HESSEXT_HOST_DEVICE T* base(i64 t) const {
        return r.blocks ? dense.out + t * r.left.size() * r.right.size() : dense.out;
    }

    // The blocks to which a pair's tile is written: (i, j) and, if the pair stands for both, (j, i); or all replicas.
    HESSEXT_HOST_DEVICE i64 copies(Pair p) const {
        return replicated ? r.curvature.rows : r.dense.out && outer_triangle() && p.first != p.second ? 2 : 1;
    }
    HESSEXT_HOST_DEVICE Pair copy(Pair p, i64 k) const {
        return replicated ? Pair{k, k} : k ? Pair{p.second, p.first} : p;
    }

    // Whether the tile's rows (or columns) are the features of one block, rather than one feature of several blocks.
    HESSEXT_HOST_DEVICE bool tile_is_features(bool row) const {
        return outer == Outer::blocks || (outer == Outer::mixed && row);
    }

  private:
    static Dense<T> destination(const Assembly<T>& r) {
        if (r.dense.out) return r.dense;
        const auto axis = [](const Features<T>& f) { return Axis{0, 0, f.cols, 0, f.cols}; };
        return {r.blocks,
                r.transposed ? r.left.size() : r.right.size(),
                axis(r.left),
                axis(r.right),
                !r.transposed || r.same_features,
                r.transposed || r.same_features};
    }
};

// Addresses of the entries of one side of a tile: their rows or columns in the result, times the distance of these.
class Line {
    i64 first_, step_, bias_, stored_;  // stored_ is the entry of the bias

  public:
    // With `features` the entries are features from `from` on of the block of_pair. Otherwise they are the feature
    // of_pair of the blocks from `from` on.
    HESSEXT_HOST_DEVICE Line(const Axis& axis, bool features, i64 of_pair, i64 from, i64 distance) {
        const i64 step = features ? axis.inner : axis.stride(of_pair);
        const i64 start = features ? axis.start + of_pair * axis.step : axis.first(of_pair);
        first_ = (start + from * step) * distance;
        step_ = step * distance;
        bias_ = (axis.start_bias + of_pair * axis.step_bias) * distance;
        stored_ = features ? axis.cols - from : INT64_MAX;
    }
    HESSEXT_HOST_DEVICE i64 operator()(i64 e) const { return e < stored_ ? first_ + e * step_ : bias_; }
};

}  // namespace hessext
