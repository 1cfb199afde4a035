// Sums of the softmax over classes: covariances of the output weights, equation (14), curvature diagonals, shifts.
#pragma once

#include "vectors.h"

namespace hessext::cpu {
namespace {

template <class T>
void softmax_diagonal(i64 depth, const Curvature<T>& q, const i64* index, const T* weight, i64 first, i64 count,
                      double* diagonal) {
    for (i64 k0 = 0; k0 < depth; k0 += chunk) {
        T sum[tile_cols] = {};
        for (i64 k = k0; k < depth && k < k0 + chunk; ++k) {
            const i64 n = index[k], top = q.top[n] - first;
            const T *p = q.probs + n * q.classes + first, w = weight[k];
            for (i64 c = 0; c < count; ++c) sum[c] -= w * p[c] * (T(1) - p[c]);
            if (top >= 0 && top < count)  // 1 - p from the other probabilities where p may be close to 1
                diagonal[top] += double(w * p[top] * (T(1) - p[top])) - double(w * p[top] * q.rest[n]);
        }
        for (i64 c = 0; c < count; ++c) diagonal[c] += double(sum[c]);
    }
}

// Classes are processed in slices whose centred rows u and p u fit into the second-level cache.
constexpr i64 slice_bytes = 1 << 18;

template <class T>
i64 covariance_slice(i64 unit_count) {
    const i64 slice = slice_bytes / (2 * unit_count * vector_bytes);
    return slice < 8 ? 8 : slice > 256 ? 256 : slice;
}

template <class T>
i64 covariance_scratch(i64 unit_count) {
    return covariance_slice<T>(unit_count) * (2 * unit_count + 1) * lanes<T>;
}

// Lanes are samples. For each slice of classes, u[e, c] = V[c, unit e] - mean and p u are formed once per unit. Then
// every pair (i, l) adds sum_c (p u_i)[c] u_l[c], where four consecutive pairs of one i share its load.
template <class T>
void covariance(const Curvature<T>& q, i64 n, i64 count, const i64* units, i64 unit_count, const std::int32_t* slots,
                i64 pair_count, T* out, i64 ld, T* scratch, double* sums) {
    constexpr i64 L = lanes<T>;
    const i64 slice = covariance_slice<T>(unit_count);
    T *u = scratch, *pu = u + unit_count * slice * L,
      *p = pu + unit_count * slice * L;  // [units, slice, L], [slice, L]
    for (i64 t = 0; t < pair_count * L; ++t) sums[t] = 0;
    for (i64 c0 = 0; c0 < q.classes; c0 += slice) {
        const i64 classes = q.classes - c0 < slice ? q.classes - c0 : slice;
        for (i64 s = 0; s < L; ++s)
            for (i64 c = 0; c < classes; ++c) p[c * L + s] = s < count ? q.probs[(n + s) * q.classes + c0 + c] : T(0);
        for (i64 e = 0; e < unit_count; ++e) {
            T at_top[L], shift[L];
            for (i64 s = 0; s < L; ++s) {
                const i64 sample = s < count ? n + s : n;
                at_top[s] = q.weight[q.top[sample] * q.rows + units[e]];
                shift[s] = q.shift[sample * q.rows + units[e]];
            }
            const Vector<T> t = load(at_top), h = load(shift);
            for (i64 c = 0; c < classes; ++c) {
                const Vector<T> centred = (q.weight[(c0 + c) * q.rows + units[e]] - t) - h;
                store(u + (e * slice + c) * L, centred);
                store(pu + (e * slice + c) * L, centred * load(p + c * L));
            }
        }
        for (i64 t = 0; t < pair_count;) {
            const i64 i = slots[2 * t];
            const T* a = pu + i * slice * L;
            const bool four =
                t + 3 < pair_count && slots[2 * t + 2] == i && slots[2 * t + 4] == i && slots[2 * t + 6] == i;
            const i64 step = four ? 4 : 1;
            const T* b[4];
            for (i64 e = 0; e < 4; ++e) b[e] = u + slots[2 * (t + (four ? e : 0)) + 1] * slice * L;
            Vector<T> sum[4] = {};
            if (four)
                for (i64 c = 0; c < classes; ++c) {
                    const Vector<T> w = load(a + c * L);
#pragma GCC unroll 4
                    for (int e = 0; e < 4; ++e) sum[e] += w * load(b[e] + c * L);
                }
            else
                for (i64 c = 0; c < classes; ++c) sum[0] += load(a + c * L) * load(b[0] + c * L);
            for (i64 e = 0; e < step; ++e)
                for (i64 s = 0; s < L; ++s) sums[(t + e) * L + s] += double(sum[e][s]);
            t += step;
        }
    }
    for (i64 t = 0; t < pair_count; ++t)
        for (i64 s = 0; s < count; ++s) out[t * ld + s] = T(sums[t * L + s]);
}

// The sum is in T within slices of classes, and in float64 across them.
template <class T>
T shift(const T* probs, const T* column, i64 classes, T at_top) {
    double total = 0;
    for (i64 c0 = 0; c0 < classes; c0 += 1024) {
        const i64 end = c0 + 1024 < classes ? c0 + 1024 : classes;
        Vector<T> part[2] = {};
        i64 c = c0;
        for (; c + 2 * lanes<T> <= end; c += 2 * lanes<T>)
            for (i64 e = 0; e < 2; ++e)
                part[e] += load(probs + c + e * lanes<T>) * (load(column + c + e * lanes<T>) - at_top);
        part[0] += part[1];
        for (i64 s = 0; s < lanes<T>; ++s) total += double(part[0][s]);
        for (; c < end; ++c) total += double(probs[c] * (column[c] - at_top));
    }
    return T(total);
}

}  // namespace
}  // namespace hessext::cpu
