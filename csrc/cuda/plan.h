// The plan of an assembly: which pair runs outside, the size of a tile, and the pairs of a batch and tiles of a launch.
#pragma once

#include <algorithm>
#include <climits>

#include "launch.h"

namespace hessext::cuda {

constexpr i64 least_split = 512;  // fewest samples of a split, if several blocks share a tile

// Entries of all tiles of a matrix, padding included.
inline double padded_area(i64 rows, i64 cols, i64 side, bool triangle) {
    const Grid tiles{ceil_div(rows, side), ceil_div(cols, side), triangle};
    return double(tiles.count()) * double(side) * double(side);
}

// The index pair that runs outside is the one with less padding. Its samples are listed, which makes use of inactive
// ReLU units.
template <class T>
Outer choose_outer(const Assembly<T>& r) {
    const Curvature<T>& q = r.curvature;
    constexpr i64 side = 32;
    const double s = double(r.left.size()), t = double(r.right.size()), classes = double(q.classes);
    if (r.pairs || !r.dense.out) return Outer::blocks;
    if (q.kind == Kind::output && q.probs)
        return s * (s + 1) / 2 * padded_area(q.classes, q.classes, side, true) <
                       classes * (classes + 1) / 2 * padded_area(r.left.size(), r.right.size(), side, true)
                   ? Outer::features
                   : Outer::blocks;
    if (q.kind == Kind::cross)
        return t * padded_area(r.left.size(), q.classes, side, false) <
                       classes * padded_area(r.left.size(), r.right.size(), side, false)
                   ? Outer::mixed
                   : Outer::blocks;
    return Outer::blocks;
}

// Small tiles waste less at the edges and fill the GPU sooner; large ones load less for each product.
template <class T>
i64 choose_side(i64 rows, i64 cols, bool triangle) {
    i64 best = 32;
    double least_cost = 2 * padded_area(rows, cols, 32, triangle);
    const auto consider = [&](i64 side, double factor) {
        const double cost = factor * padded_area(rows, cols, side, triangle);
        if (cost < least_cost) best = side, least_cost = cost;
    };
    consider(64, 1.25);
    if (sizeof(T) == sizeof(float)) consider(128, 1);
    return best;
}

// Whether all rows consist of whole pieces of 16 bytes, at multiples of 16 bytes.
template <class T>
bool aligned(const Features<T>& f) {
    constexpr i64 size = 16 / sizeof(T);
    return reinterpret_cast<std::uintptr_t>(f.data) % 16 == 0 && f.ld % size == 0 && f.cols % size == 0;
}

// Pair t of an assembly. In a triangle the pairs (i, i) come first: for ReLU units they have twice as many samples as
// others, and the longest work should not begin last.
template <class T>
HESSEXT_HOST_DEVICE inline Pair pair_at(const Outline<T>& o, i64 t) {
    if (o.r.pairs || !o.outer_triangle()) return o.pair(t);
    const i64 rows = o.grid().rows;
    if (t < rows) return {t, t};
    const Pair above = Grid{rows - 1, rows - 1, true}.at(t - rows);
    return {above.first, above.second + 1};
}

constexpr i64 least_listed = 64;  // fewest given pairs for which samples are listed

template <class T>
struct Plan {
    Outline<T> outline;
    i64 samples;                       // N
    bool tensor;                       // on tensor cores
    bool covariance;                   // the weights contain (V^T B_n V)[i, l]
    bool sparse;                       // weights may be zero, as for inactive units, so that samples are listed
    Features<T> left, right;           // sides of a tile; the right one is unused if it is a column of B_n V
    bool left_aligned, right_aligned;  // whether a side's rows, or those of p_n, consist of aligned 16 bytes
    bool triangle;                     // only entries r <= c are computed
    bool curvature_column;             // the right side is w_n (B_n V)[j, i] / c_n + extra_n r_n[j], i the pair's first
    i64 side;
    Grid tiles;              // of one pair's product
    i64 batch;               // pairs whose weights are in memory at a time
    i64 span;                // samples summed in T
    i64 splits = 1;          // blocks that share a tile, each a part of its samples
    bool long_sums = false;  // sums are stored in float64, between spans or for several splits
    i64 launch_tiles = 1;    // tiles of a launch

    Plan(const Assembly<T>& request, bool tensor_cores) : outline(request, choose_outer(request)) {
        const Outline<T>& o = outline;
        const Curvature<T>& q = o.r.curvature;
        if (std::max({o.r.samples, q.classes, o.r.left.ld, o.r.right.ld, o.r.left.size(), o.r.right.size()}) > INT_MAX)
            throw std::runtime_error("CUDA: expected fewer than 2^31 samples, classes and features");
        if (std::max({q.classes, o.r.left.ld, o.r.right.ld}) * i64(sizeof(T)) > UINT_MAX)
            throw std::runtime_error("CUDA: expected rows of less than 4 GiB");
        samples = o.r.samples;
        tensor = tensor_cores;
        covariance = q.kind == Kind::hidden && q.gauss_newton && q.probs;
        // One block makes the list of each pair, which takes long if few pairs have many samples.
        const bool few_given = q.kind == Kind::given && o.pair_count() < least_listed;
        sparse = (q.kind != Kind::output && !few_given) || o.outer == Outer::features;
        const Features<T> classes{q.probs, q.classes, q.classes, false};
        left = o.outer == Outer::features ? classes : o.r.left;
        right = o.outer == Outer::features ? classes : o.r.right;
        triangle = inner_triangle(o.r);
        curvature_column = o.outer == Outer::mixed;
        left_aligned = aligned(left), right_aligned = aligned(curvature_column ? classes : right);
        side = choose_side<T>(left.size(), right_size(), triangle);
        tiles = {ceil_div(left.size(), side), ceil_div(right_size(), side), triangle};

        const i64 list_bytes =
            samples * i64(sparse * sizeof(int) + sizeof(T) * (1 + o.extra + covariance + 2 * curvature_column));
        const i64 pair_bytes = list_bytes + i64(sizeof(i64)) + (o.r.norms ? tiles.count() * i64(sizeof(double)) : 0);
        const i64 pairs = std::min(o.pair_count(), limits().blocks);
        batch = std::max<i64>(1, std::min(limits().workspace / pair_bytes, pairs));
        span = cuda::span(tensor);
    }

    // If tiles are few, several blocks share each of them, until there are twice as many as the GPU holds at a time.
    void split(i64 resident) {
        const i64 all = batch * tiles.count();
        splits = std::max<i64>(1, std::min(2 * resident / all, samples / least_split));
        long_sums = splits > 1 || (sizeof(T) < sizeof(double) && samples > span);
        launch_tiles = std::min(all, limits().blocks / splits);
        if (long_sums)
            launch_tiles = std::min(launch_tiles, limits().workspace / (splits * side * side * i64(sizeof(double))));
        launch_tiles = std::max<i64>(1, launch_tiles);
    }

    HESSEXT_HOST_DEVICE i64 right_size() const { return curvature_column ? outline.r.curvature.classes : right.size(); }
};

}  // namespace hessext::cuda
