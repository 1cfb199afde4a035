// Which index pair runs outside and which fills the tile. A cost model in multiply-adds decides; it includes padding,
// sparsity, weights and packing.
#pragma once

#include <algorithm>
#include <cmath>

#include "../assembly.h"
#include "isa/kernels.h"

namespace hessext::cpu {

inline constexpr i64 batch_bytes = i64(24) << 20;  // workspace for the weights and lists of a batch of pairs

// `together` takes at most so many feature pairs, and holds the weights of all samples or of a slice at a time. Between
// slices it keeps the sums of all feature pairs, so these must be fewer.
inline constexpr i64 most_feature_pairs = 1 << 18;
inline constexpr i64 most_sliced_pairs = 1 << 12;
inline constexpr i64 slice = 5 * span;

inline i64 samples_held(i64 samples, double feature_pairs) {
    return feature_pairs <= double(most_sliced_pairs) ? std::min(samples, slice) : samples;
}

enum class Method {
    pairwise,  // one product per outer pair, over the samples of nonzero weight
    together,  // one product, feature pairs x block pairs, with both symmetries and little padding: small s, large K
};

struct Plan {
    Method method;
    Outer outer;
    double cost;  // in multiply-adds
};

inline i64 round_up(i64 n, i64 to) { return (n + to - 1) / to * to; }

// Size of the pieces, a multiple of `of`, when `total` is cut evenly into pieces of at most `most`.
inline i64 even(i64 total, i64 most, i64 of) {
    const i64 pieces = (total + most - 1) / most;
    return round_up((total + pieces - 1) / pieces, of);
}

// Entries of an a x b tile, padded to whole register tiles; with `triangle` those of its upper triangle (a == b).
template <class T>
double padded_area(const Kernels<T>& k, i64 a, i64 b, bool triangle) {
    if (!triangle)
        return std::fmin(double(round_up(a, k.rows)) * double(round_up(b, k.cols)),
                         double(round_up(b, k.rows)) * double(round_up(a, k.cols)));
    double area = 0;
    for (i64 c = 0; c < b; c += k.cols) area += double(round_up(std::min(a, c + k.cols), k.rows)) * double(k.cols);
    return area;
}

// Share of nonzero entries of a matrix [n, cols], from at most 64 rows.
template <class T>
double density(const T* data, i64 ld, i64 n, i64 cols) {
    if (!data || !n || !cols) return 1;
    const i64 step = (n + 63) / 64;
    i64 seen = 0, nonzero = 0;
    for (i64 r = 0; r < n; r += step, seen += cols)
        for (i64 c = 0; c < cols; ++c) nonzero += data[r * ld + c] != T(0);
    return double(nonzero) / double(seen);
}

// Whether products phi_n[a] psi_n[b] are numbers that T holds without their weight. float32 is widened where they are
// not.
template <class T>
bool products_in_range(const Assembly<T>& r) {
    if (sizeof(T) < sizeof(double)) return true;
    constexpr int most = 1000;  // of an exponent of 1023
    int least_sum = 0, largest_sum = 0;
    for (const Features<T>* f : {&r.left, &r.right}) {
        int least = f->ones ? 0 : most, largest = f->ones ? 0 : -most;
        for (i64 n = 0; n < r.samples; ++n)
            for (i64 a = 0; a < f->cols; ++a) {
                const T value = f->data[n * f->ld + a];
                if (value == T(0)) continue;
                const int exponent = std::ilogb(value);
                least = std::min(least, exponent), largest = std::max(largest, exponent);
            }
        least_sum += least, largest_sum += largest;
    }
    return least_sum > -most && largest_sum < most;
}

template <class T>
Plan make_plan(const Kernels<T>& k, const Assembly<T>& r) {
    const Curvature<T>& q = r.curvature;
    const double n = double(r.samples), s = double(r.left.size()), t = double(r.right.size());
    const double rows = double(q.rows), cols = double(q.cols);
    const bool replicated = q.kind == Kind::output && !q.probs;
    const double block_pairs = replicated    ? 1
                               : r.pairs     ? double(r.pair_count)
                               : q.symmetric ? rows * (rows + 1) / 2
                                             : rows * cols;
    const double feature_pairs = inner_triangle(r) ? s * (s + 1) / 2 : s * t;
    const double active = density(q.slope, q.rows, r.samples, q.rows);

    // Cost of outer pairs with tiles of `area`. Weights are formed and listed for all samples; rows are gathered into
    // panels for samples of nonzero weight. In cycles of one vector of multiply-adds this takes 12 for a weight, 40 for
    // a sample and 0.75 for an item of its row, as scripts/calibrate measures.
    const auto pairwise = [&](double pairs, double share, double area, double items) {
        return pairs * n * double(k.lanes) * (12 + share * (area / double(k.lanes) + 40 + 0.75 * items));
    };
    const double share = q.kind == Kind::hidden  ? active * active
                         : q.kind == Kind::cross ? active
                         : q.kind == Kind::given ? density(q.entries, r.samples, i64(block_pairs), r.samples)
                                                 : 1;
    Plan best = {Method::pairwise, Outer::blocks,
                 pairwise(block_pairs, share, padded_area(k, r.left.size(), r.right.size(), inner_triangle(r)), s + t)};
    const auto consider = [&](Method method, Outer outer, double cost) {
        if (cost < best.cost) best = {method, outer, cost};
    };
    // Products of features are formed once for each job, whose block pairs are about a batch, at 2 cycles each.
    const bool extra = adds_residual(r), between = q.kind == Kind::cross || q.kind == Kind::given;
    const double views = extra ? 2 : 1;  // weights, and those of the residual
    const double panel_bytes = views * double(samples_held(r.samples, feature_pairs) * k.cols * i64(sizeof(T)));
    if (!(extra && r.norms) && !replicated && feature_pairs <= double(most_feature_pairs) &&
        panel_bytes <= double(batch_bytes) && (!between || products_in_range(r))) {
        const double panels = std::ceil(block_pairs / double(k.cols));
        const double batches = std::ceil(panels / std::floor(batch_bytes / panel_bytes));
        consider(Method::together, Outer::blocks,
                 n * (std::ceil((feature_pairs + (views - 1) * s) / k.rows) + 1) * k.rows *
                         (panels * k.cols + batches * 2 * double(k.lanes)) +
                     n * block_pairs * views * 6 * double(k.lanes));
    }
    if (!r.pairs && r.dense.out && q.kind == Kind::output && q.probs) {
        const double features = density(r.left.data, r.left.ld, r.samples, r.left.cols);
        consider(Method::pairwise, Outer::features,
                 pairwise(feature_pairs, features * features, padded_area(k, q.classes, q.classes, true),
                          2 * double(q.classes)));
    }
    if (!r.pairs && r.dense.out && q.kind == Kind::cross) {
        const double features = density(r.right.data, r.right.ld, r.samples, r.right.cols), both = active * features;
        const double area = padded_area(k, r.left.size(), q.classes, false), items = s + double(q.classes);
        consider(Method::pairwise,
                 Outer::mixed,  // without softmax, tiles (i, b) with b != i are outer products of sums
                 q.probs ? pairwise(rows * t, both, area, items)
                         : pairwise(rows, active, area, items) + pairwise(rows * t, both, 0, s));
    }
    return best;
}

}  // namespace hessext::cpu
