// The inner loops, in one table per instruction set. Only isa.cpp depends on the set, and it is compiled once for each.
#pragma once

#include "../../core.h"

namespace hessext::cpu {

// A tile of a product: at most tile_rows x tile_cols entries, chunk samples deep at a time. The packed rows of a chunk
// and a slab of its columns share the second-level cache.
inline constexpr i64 tile_rows = 504;          // a multiple of every kernel's panel height (14, 6)
inline constexpr i64 tile_cols = 512;          // a multiple of every kernel's panel width (32, 16, 8, 4)
inline constexpr i64 tile_ld = tile_cols + 8;  // padded: columns of the tile fall in different cache sets
inline constexpr i64 slab = 128;
inline constexpr i64 scan_samples = 512;  // most samples of a `softmax_scan`
inline constexpr i64 chunk = 192;
inline constexpr i64 span = 48 * chunk;            // samples summed in T; sums of several spans are in float64
inline constexpr i64 below_all = -(i64(1) << 40);  // `offset` of a product without a triangle

inline constexpr i64 most_products = 252;  // pairs of a ColumnPairs; a multiple of every kernel's panel height

// Pairs (left[first[e]], right[second[e]]) of columns. Every column that occurs in them is listed once.
struct ColumnPairs {
    i64 count, left_count, right_count;
    std::int32_t left[most_products], right[most_products], first[most_products], second[most_products];
};

// Panels are sample-major: panel q holds items q*width .. q*width+width-1 as [depth][width], zero-padded.
template <class T>
struct Kernels {
    i64 rows;   // panel width of the left operand (registers: rows x cols accumulators)
    i64 cols;   // panel width of the right operand
    i64 lanes;  // samples that `covariance` handles together

    // tile[r, c] += sum_k left[k, r] right[k, c], the sum over k in registers. Right panels lie right_stride apart.
    // Skips register tiles that lie wholly below the diagonal r + offset = c.
    void (*multiply)(i64 depth, const T* left, i64 row_panels, const T* right, i64 right_stride, i64 col_panels,
                     T* tile, i64 ld, i64 offset);

    // panels[k, c] = weight[k] * data[index[k], first + c], c < count; index null: rows 0..depth; weight null: 1.
    void (*pack)(bool left, i64 depth, const T* data, i64 ld, const i64* index, const T* weight, i64 first, i64 count,
                 T* panels);

    // panels[k, c] = data[c * ld + k], c < count.
    void (*pack_across)(bool left, i64 depth, const T* data, i64 ld, i64 count, T* panels);

    // panels[k, e] = weight[k] phi_n[a] psi_n[b], n = start + k, of pair e = (a, b); weight null: 1. Panels lie
    // panel_stride apart.
    void (*pack_products)(bool left, i64 depth, const Features<T>& phi, const Features<T>& psi, const T* weight,
                          i64 start, const ColumnPairs& pairs, T* panels, i64 panel_stride);

    // panels[k, c] = weight[k] p_n[j] (V[j, i] - V[top, i] - shift[n, i]) + extra[k] r_n[j],
    // n = index[k], j = first + c: the cross-layer curvature of unit i for the right (or left) operand.
    void (*pack_cross)(bool left, i64 depth, const Curvature<T>& q, i64 unit, const T* column, const i64* index,
                       const T* weight, const T* extra, i64 first, i64 count, T* panels);

    // diagonal[c] -= sum_k weight[k] p_n[j] (1 - p_n[j]), j = first + c, c < count.
    void (*softmax_diagonal)(i64 depth, const Curvature<T>& q, const i64* index, const T* weight, i64 first, i64 count,
                             double* diagonal);

    // out[p * ld + n] = sum_c p_n[c] u_n[c, i] u_n[c, l], u_n[c] = V[c] - E_p V, for `lanes` samples from n (fewer at
    // the end) and the pairs (i, l) of `slots` (positions in `units`). Scratch: covariance_scratch() elements.
    void (*covariance)(const Curvature<T>& q, i64 n, i64 count, const i64* units, i64 unit_count,
                       const std::int32_t* slots, i64 pair_count, T* out, i64 ld, T* scratch, double* sums);
    i64 (*covariance_scratch)(i64 unit_count);

    // In place, the logits of one sample become probabilities. Writes the most probable class and the sum of the
    // others.
    void (*softmax)(i64 classes, T* logits, i64* top, T* rest);

    // sum_c p[c] (column[c] - at_top)
    T (*shift)(const T* probs, const T* column, i64 classes, T at_top);

    // Class-major logits [classes, ld], `count` <= scan_samples samples; row 0 is class `first`. Merges these classes
    // into the largest logit, its class and the sum of e^(l - largest) over all other classes seen.
    void (*softmax_scan)(i64 classes, i64 first, const T* logits, i64 ld, i64 count, T* largest, i64* top,
                         double* others);

    // In place, the logits l of one class become e^(l - largest) inverse.
    void (*softmax_row)(i64 count, T* logits, const T* largest, const T* inverse);

    // On the panels of one side: square = p^2 and p = p (1 - p inverse), for p inverse <= 1/2. inverse has an entry per
    // item.
    void (*softmax_split)(bool left, i64 depth, i64 panels, const T* inverse, T* p, T* square);
};

template <class T>
const Kernels<T>& kernels();

}  // namespace hessext::cpu
