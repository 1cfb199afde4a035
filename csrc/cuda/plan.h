// One assembly on a GPU: outer pairs are listed in batches, then every tile of every pair is one job of a launch.
#pragma once

#include "device.h"

namespace hessext::cuda {

// The samples of nonzero weight of each outer pair of a batch, in order: [pairs, N], entry k of pair t at t * N + k.
// Null where a part has no use for it.
template <class T>
struct Lists {
    int* index;  // sample n
    T* weight;   // w_n: multiplies left_n right_n^T
    T* extra;    // extra_n: what the residual adds (see `WeightedFeatures`, `CurvatureColumn`)
    T* at_top;   // V[top_n, i] and shift[n, i] of the pair's unit i, where a column of B_n V is the right side
    T* shift;
    i64* count;  // [pairs]
};

template <class T>
struct Job {
    Outline<T> outline;
    i64 samples = outline.r.curvature.samples;
    Features<T> left{}, right{};  // sides of the tile; the right one is unused where it is a column of B_n V
    bool triangle = false;        // only entries r <= c are computed
    // The right side is w_n (B_n V)[j, i] / c_n + extra_n r_n[j] over classes j, of unit i = pair.first.
    bool curvature_column = false;
    Lists<T> lists{};
    T* weight_columns = nullptr;    // V^T [m, C]
    T* covariance = nullptr;        // (V^T B_n V)[i, l] / c_n of a batch, [pairs, N], for the hidden part
    Grid tiles{};                   // of one pair's product
    i64 first_pair = 0, pairs = 0;  // of the batch
    i64 first_job = 0;              // of the launch; a job is (pair, tile), pair-major
    i64 span = 0;                   // samples summed in T
    i64 splits = 1;                 // blocks that share a job
    double* slots = nullptr;        // [jobs, splits, side, side] where sums are kept in float64 between spans, or null
    double* partial = nullptr;      // squared norms [pairs of the batch, tiles]

    explicit Job(const Outline<T>& outline) : outline(outline) {}

    HESSEXT_ANYWHERE i64 right_size() const { return curvature_column ? outline.r.curvature.classes : right.size(); }
};

// Pair t of an assembly. Of a triangle the pairs (i, i) come first: of ReLU units they have twice the samples of
// others, and what takes longest should not begin last.
template <class T>
HESSEXT_ANYWHERE inline Pair pair_at(const Outline<T>& o, i64 t) {
    if (o.r.pairs || !o.outer_triangle()) return o.pair(t);
    const i64 rows = o.grid().rows;
    if (t < rows) return {t, t};
    const Pair above = Grid{rows - 1, rows - 1, true}.at(t - rows);
    return {above.first, above.second + 1};
}
template <class T>
HESSEXT_ANYWHERE inline Pair pair_of(const Job<T>& job, i64 t) {
    return pair_at(job.outline, job.first_pair + t);
}

}  // namespace hessext::cuda
