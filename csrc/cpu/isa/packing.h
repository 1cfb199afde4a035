// Packing of rows, feature products and the cross-layer curvature into panels.
#pragma once

#include "vectors.h"

namespace hessext::cpu {
namespace {

// Packs the items c of one sample into panels of width W. item.at<V>(c) returns the items from c on that fill a V.
template <class T, i64 W, class Item>
inline void pack_sample(const Item& item, i64 depth, i64 count, T* to) {
    constexpr i64 half = W >= lanes<T> ? lanes<T> : lanes<T> / 2;  // whole vectors, the last one overlapping
    i64 c = 0;
    for (; c + W <= count; c += W, to += W * depth) {
#pragma GCC unroll 8
        for (i64 e = 0; e + half < W; e += half) store(to + e, item.template at<Vector<T, half>>(c + e));
        store(to + W - half, item.template at<Vector<T, half>>(c + W - half));
    }
    if (c < count)
        for (i64 e = 0; e < W; ++e) to[e] = c + e < count ? item.template at<T>(c + e) : T(0);
}

template <class T>
struct ScaledRow {  // w row[c]
    const T* row;
    T w;

    template <class V>
    V at(i64 c) const {
        return w * load_as<V>(row + c);
    }
};

template <class T>
inline void prefetch(const T* row, i64 count) {  // for accesses that a hardware prefetcher does not predict
    for (i64 c = 0; c < count; c += 64 / i64(sizeof(T))) __builtin_prefetch(row + c);
}

// Packs some panels at a time, as a row is written to as many pages as there are panels.
template <class T, i64 W>
void pack_width(i64 depth, const T* data, i64 ld, const i64* index, const T* weight, i64 first, i64 count, T* panels) {
    constexpr i64 most = 128 / W * W, page = 4096 / sizeof(T);
    const bool apart = index || ld >= page;  // rows are gathered, or each is on a page of its own
    for (i64 c = 0; c < count; c += most) {
        const i64 some = count - c < most ? count - c : most;
        for (i64 k = 0; k < depth; ++k) {
            if (apart && k + 3 < depth) prefetch(data + (index ? index[k + 3] : k + 3) * ld + first + c, some);
            const ScaledRow<T> row{data + (index ? index[k] : k) * ld + first + c, weight ? weight[k] : T(1)};
            pack_sample<T, W>(row, depth, some, panels + c * depth + k * W);
        }
    }
}

template <class T>
void pack(bool left, i64 depth, const T* data, i64 ld, const i64* index, const T* weight, i64 first, i64 count,
          T* panels) {
    if (left)
        pack_width<T, panel_rows>(depth, data, ld, index, weight, first, count, panels);
    else
        pack_width<T, panel_cols<T>>(depth, data, ld, index, weight, first, count, panels);
}

#if __has_builtin(__builtin_shufflevector)  // GCC 12, Clang
// Interleaves the low or the high halves of two vectors. log2(n) rounds of this transpose n vectors.
template <class V, int n>
inline V interleaved(V a, V b, bool high) {
    if constexpr (n == 16)
        return high ? __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
                    : __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    else if constexpr (n == 8)
        return high ? __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
                    : __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
    else if constexpr (n == 4)
        return high ? __builtin_shufflevector(a, b, 2, 6, 3, 7) : __builtin_shufflevector(a, b, 0, 4, 1, 5);
    else
        return high ? __builtin_shufflevector(a, b, 1, 3) : __builtin_shufflevector(a, b, 0, 2);
}

template <class T>
inline void transpose(Vector<T> (&rows)[lanes<T>]) {
    constexpr int n = lanes<T>;
#pragma GCC unroll 4
    for (int half = 1; half < n; half *= 2) {
        Vector<T> next[n];
#pragma GCC unroll 8
        for (int e = 0; e < n / 2; ++e) {
            next[2 * e] = interleaved<Vector<T>, n>(rows[e], rows[e + n / 2], false);
            next[2 * e + 1] = interleaved<Vector<T>, n>(rows[e], rows[e + n / 2], true);
        }
#pragma GCC unroll 16
        for (int e = 0; e < n; ++e) rows[e] = next[e];
    }
}
#else
template <class T>
inline void transpose(Vector<T> (&rows)[lanes<T>]) {
    for (int r = 0; r < lanes<T>; ++r)
        for (int c = 0; c < r; ++c) {
            const T value = rows[r][c];
            rows[r][c] = rows[c][r], rows[c][r] = value;
        }
}
#endif

// Packs squares of `lanes` items x `lanes` depths.
template <class T, i64 W>
void pack_across_width(i64 depth, const T* data, i64 ld, i64 count, T* panels) {
    constexpr int n = lanes<T>;
    for (; count > 0; count -= W, data += W * ld, panels += W * depth)
#pragma GCC unroll 4
        for (i64 c = 0; c < W; c += n) {
            constexpr int most = n;
            const i64 items = count - c < most ? count - c : most, width = W - c < most ? W - c : most;
            i64 k = 0;
            for (; k + n <= depth; k += n) {
                Vector<T> rows[n] = {};
                for (i64 e = 0; e < (items < width ? items : width); ++e) rows[e] = load(data + (c + e) * ld + k);
                transpose<T>(rows);
                for (int e = 0; e < n; ++e) __builtin_memcpy(panels + (k + e) * W + c, &rows[e], width * sizeof(T));
            }
            for (; k < depth; ++k)
                for (i64 e = 0; e < width; ++e) panels[k * W + c + e] = e < items ? data[(c + e) * ld + k] : T(0);
        }
}

template <class T>
void pack_across(bool left, i64 depth, const T* data, i64 ld, i64 count, T* panels) {
    const auto run = left ? pack_across_width<T, panel_rows> : pack_across_width<T, panel_cols<T>>;
    run(depth, data, ld, count, panels);
}

// to[c * lanes + k] = weight[k] phi_n[columns[c]], n = start + k, k < samples <= lanes
template <class T>
inline void read_columns(const Features<T>& f, const T* weight, i64 start, i64 samples, const std::int32_t* columns,
                         i64 count, T* to) {
    for (i64 c = 0; c < count; ++c, to += lanes<T>) {
        const T* from = f.data + start * f.ld + columns[c];
        const bool one = columns[c] >= f.cols;
        i64 k = 0;
        for (; k < samples; ++k) to[k] = one ? T(1) : from[k * f.ld];
        for (; k < lanes<T>; ++k) to[k] = T(0);
        if (weight)
            for (k = 0; k < samples; ++k) to[k] *= weight[k];
    }
}

// Packs squares of `lanes` pairs x `lanes` samples.
template <class T, i64 W>
void pack_products_width(i64 depth, const Features<T>& a, const Features<T>& b, const T* weight, i64 start,
                         const ColumnPairs& pairs, T* panels, i64 panel_stride) {
    constexpr i64 n = lanes<T>;
    T left[most_products * n], right[most_products * n];
    for (i64 k0 = 0; k0 < depth; k0 += n) {
        const i64 samples = depth - k0 < n ? depth - k0 : n;
        read_columns<T>(a, weight ? weight + k0 : nullptr, start + k0, samples, pairs.left, pairs.left_count, left);
        read_columns<T>(b, nullptr, start + k0, samples, pairs.right, pairs.right_count, right);
        T* to = panels + k0 * W;
        for (i64 e0 = 0; e0 < pairs.count; e0 += W, to += panel_stride)
#pragma GCC unroll 4
            for (i64 c = 0; c < W; c += n) {
                constexpr i64 most = n;
                const i64 width = W - c < most ? W - c : most, there = pairs.count - e0 - c;
                Vector<T> rows[n];
#pragma GCC unroll 16
                for (i64 e = 0; e < n; ++e) {
                    const i64 at = e0 + c + e;
                    rows[e] = e < width && e < there
                                  ? load(left + pairs.first[at] * n) * load(right + pairs.second[at] * n)
                                  : Vector<T>{};
                }
                transpose<T>(rows);
#pragma GCC unroll 16
                for (i64 k = 0; k < n; ++k)
                    if (k < samples) __builtin_memcpy(to + k * W + c, &rows[k], width * sizeof(T));
            }
    }
}

template <class T>
void pack_products(bool left, i64 depth, const Features<T>& a, const Features<T>& b, const T* weight, i64 start,
                   const ColumnPairs& pairs, T* panels, i64 panel_stride) {
    const auto run = left ? pack_products_width<T, panel_rows> : pack_products_width<T, panel_cols<T>>;
    run(depth, a, b, weight, start, pairs, panels, panel_stride);
}

template <class T, bool softmax, bool residual>
struct CrossRow {  // w p[c] (column[c] - at_top - shift) + e r[c]
    const T *p, *r, *column;
    T w, e, at_top, shift;

    template <class V>
    V at(i64 c) const {
        V value = load_as<V>(column + c);
        if constexpr (softmax) value = ((value - at_top) - shift) * load_as<V>(p + c);
        value *= w;
        if constexpr (residual) value += e * load_as<V>(r + c);
        return value;
    }
};

template <class T, i64 W, bool softmax, bool residual>
void pack_cross_width(i64 depth, const Curvature<T>& q, i64 unit, const T* column, const i64* index, const T* weight,
                      const T* extra, i64 first, i64 count, T* panels) {
    CrossRow<T, softmax, residual> row{};
    row.column = column + first;
    for (i64 k = 0; k < depth; ++k) {
        const i64 n = index[k], next = index[k + 3 < depth ? k + 3 : k] * q.classes + first;
        row.w = weight[k];
        if constexpr (softmax) {
            prefetch(q.probs + next, count);
            row.p = q.probs + n * q.classes + first;
            row.at_top = q.weight[q.top[n] * q.rows + unit];
            row.shift = q.shift[n * q.rows + unit];
        }
        if constexpr (residual) {
            prefetch(q.residual + next, count);
            row.r = q.residual + n * q.classes + first;
            row.e = extra[k];
        }
        pack_sample<T, W>(row, depth, count, panels + k * W);
    }
}

template <class T, i64 W>
void pack_cross_any(i64 depth, const Curvature<T>& q, i64 unit, const T* column, const i64* index, const T* weight,
                    const T* extra, i64 first, i64 count, T* panels) {
    const auto run = q.probs ? extra ? pack_cross_width<T, W, true, true> : pack_cross_width<T, W, true, false>
                     : extra ? pack_cross_width<T, W, false, true>
                             : pack_cross_width<T, W, false, false>;
    run(depth, q, unit, column, index, weight, extra, first, count, panels);
}

template <class T>
void pack_cross(bool left, i64 depth, const Curvature<T>& q, i64 unit, const T* column, const i64* index,
                const T* weight, const T* extra, i64 first, i64 count, T* panels) {
    if (left)
        pack_cross_any<T, panel_rows>(depth, q, unit, column, index, weight, extra, first, count, panels);
    else
        pack_cross_any<T, panel_cols<T>>(depth, q, unit, column, index, weight, extra, first, count, panels);
}

}  // namespace
}  // namespace hessext::cpu
