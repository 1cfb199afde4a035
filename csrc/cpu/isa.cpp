// Inner loops in GCC/Clang vector extensions. Compiled once per instruction set (HESSEXT_ISA names it), so everything
// is internal to the file and no standard library template is used: an inline function compiled for AVX-512 must
// never be the copy that the linker keeps.
#include "kernels.h"

#ifndef HESSEXT_ISA
#define HESSEXT_ISA baseline
#endif

namespace hessext::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64, panel_rows = 14;
#elif defined(__AVX2__)
constexpr int vector_bytes = 32, panel_rows = 6;
#elif defined(__aarch64__)
constexpr int vector_bytes = 16, panel_rows = 14;
#else
constexpr int vector_bytes = 16, panel_rows = 6;
#endif

template <class T>
constexpr i64 lanes = vector_bytes / sizeof(T);
template <class T>
constexpr i64 panel_cols = 2 * lanes<T>;

static_assert(tile_rows % panel_rows == 0 && tile_cols % panel_cols<float> == 0 && tile_cols % panel_cols<double> == 0);

template <class T, i64 n = lanes<T>>
using Vector __attribute__((vector_size(n * sizeof(T)), aligned(sizeof(T)), may_alias)) = T;

template <class V, class T>
inline V load_as(const T* p) {
    return *reinterpret_cast<const V*>(p);
}
template <class T>
inline Vector<T> load(const T* p) {
    return load_as<Vector<T>>(p);
}
template <class T, class V>
inline void store(T* p, V v) {
    *reinterpret_cast<V*>(p) = v;
}

// ---------------------------------------------------------------------------------------------------- products

// One register tile: panel_rows x panel_cols sums over a chunk, added to the tile.
template <class T>
void multiply_registers(i64 depth, const T* left, const T* right, T* tile, i64 ld) {
    Vector<T> sum[panel_rows][2] = {};
    for (i64 k = 0; k < depth; ++k) {
        const Vector<T> b0 = load(right), b1 = load(right + lanes<T>);
#pragma GCC unroll 14
        for (int r = 0; r < panel_rows; ++r) {
            sum[r][0] += left[r] * b0;
            sum[r][1] += left[r] * b1;
        }
        left += panel_rows;
        right += panel_cols<T>;
    }
#pragma GCC unroll 14
    for (int r = 0; r < panel_rows; ++r) {
        T* row = tile + r * ld;
        store(row, load(row) + sum[r][0]);
        store(row + lanes<T>, load(row + lanes<T>) + sum[r][1]);
    }
}

template <class T>
void multiply(i64 depth, const T* left, i64 row_panels, const T* right, i64 right_stride, i64 col_panels, T* tile,
              i64 ld, i64 offset) {
    for (i64 q = 0; q < col_panels; ++q) {
        const i64 last_col = (q + 1) * panel_cols<T> - 1;
        for (i64 p = 0; p < row_panels; ++p) {
            if (p * panel_rows + offset > last_col) break;  // wholly below the diagonal, and so are the next
            multiply_registers(depth, left + p * panel_rows * depth, right + q * right_stride,
                               tile + p * panel_rows * ld + q * panel_cols<T>, ld);
        }
    }
}

// ----------------------------------------------------------------------------------------------------- packing

// Items c of one sample into panels of width W; item.at<V>(c) gives V's worth of items from c on.
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
inline void prefetch(const T* row, i64 count) {  // gathered rows are not where a hardware prefetcher looks
    for (i64 c = 0; c < count; c += 64 / i64(sizeof(T))) __builtin_prefetch(row + c);
}

template <class T, i64 W>
void pack_width(i64 depth, const T* data, i64 ld, const i64* index, const T* weight, i64 first, i64 count, T* panels) {
    for (i64 k = 0; k < depth; ++k) {
        if (index && k + 3 < depth) prefetch(data + index[k + 3] * ld + first, count);
        const ScaledRow<T> row{data + (index ? index[k] : k) * ld + first, weight ? weight[k] : T(1)};
        pack_sample<T, W>(row, depth, count, panels + k * W);
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

template <class T>
void pack_products(i64 depth, const Features<T>& a, const Features<T>& b, i64 start, const std::int32_t* first,
                   const std::int32_t* second, const std::int32_t* run, i64 count, T* panels) {
    for (i64 k = 0; k < depth; ++k) {
        const T *x = a.data + (start + k) * a.ld, *y = b.data + (start + k) * b.ld;
        T products[tile_rows];
        for (i64 e = 0; e < count;) {
            const i64 end = e + run[e] < count ? e + run[e] : count;
            const T u = first[e] < a.cols ? x[first[e]] : T(1);
            if (second[e] < b.cols)
                for (const T* v = y + second[e]; e < end; ++e, ++v) products[e] = u * *v;
            else
                products[e++] = u;  // the feature that is always 1
        }
        pack_sample<T, panel_rows>(ScaledRow<T>{products, T(1)}, depth, count, panels + k * panel_rows);
    }
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
            row.at_top = q.weight[q.top[n] * q.units + unit];
            row.shift = q.shift[n * q.units + unit];
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

// -------------------------------------------------------------------------------------------- softmax curvature

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

// Classes are taken in slices whose centred rows u and p u fit the second-level cache.
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

// Lanes are samples. Slice by slice of classes: u[e, c] = V[c, unit e] - mean and p u are formed once per unit, then
// every pair (i, l) adds sum_c (p u_i)[c] u_l[c]; four consecutive pairs of one i share its load.
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
                at_top[s] = q.weight[q.top[sample] * q.units + units[e]];
                shift[s] = q.shift[sample * q.units + units[e]];
            }
            const Vector<T> t = load(at_top), h = load(shift);
            for (i64 c = 0; c < classes; ++c) {
                const Vector<T> centred = (q.weight[(c0 + c) * q.units + units[e]] - t) - h;
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

template <class T>
double sum(const T* p, i64 n) {
    double total = 0;
    for (i64 c0 = 0; c0 < n; c0 += 1024) {
        const i64 end = c0 + 1024 < n ? c0 + 1024 : n;
        Vector<T> part = {};
        i64 c = c0;
        for (; c + lanes<T> <= end; c += lanes<T>) part += load(p + c);
        for (i64 s = 0; s < lanes<T>; ++s) total += double(part[s]);
        for (; c < end; ++c) total += double(p[c]);
    }
    return total;
}

template <class T>
void shift(const T* probs, i64 classes, const T* weight, i64 units, i64 top, T* out) {
    constexpr i64 some = 64, slice = 256;  // units and classes taken at once
    for (i64 i0 = 0; i0 < units; i0 += some) {
        const i64 count = units - i0 < some ? units - i0 : some;
        const T* at_top = weight + top * units + i0;
        double total[some] = {};
        for (i64 c0 = 0; c0 < classes; c0 += slice) {
            T part[some] = {};
            for (i64 c = c0; c < classes && c < c0 + slice; ++c)
                for (i64 i = 0; i < count; ++i) part[i] += probs[c] * (weight[c * units + i0 + i] - at_top[i]);
            for (i64 i = 0; i < count; ++i) total[i] += double(part[i]);
        }
        for (i64 i = 0; i < count; ++i) out[i0 + i] = T(total[i]);
    }
}

template <class T>
constexpr Kernels<T> table = {panel_rows,    panel_cols<T>,         lanes<T>,      multiply<T>,
                              pack<T>,       pack_products<T>,      pack_cross<T>, softmax_diagonal<T>,
                              covariance<T>, covariance_scratch<T>, sum<T>,        shift<T>};

}  // namespace

#define HESSEXT_JOIN_(a, b) a##b
#define HESSEXT_JOIN(a, b) HESSEXT_JOIN_(a, b)
const Kernels<float>& HESSEXT_JOIN(float_, HESSEXT_ISA)() { return table<float>; }
const Kernels<double>& HESSEXT_JOIN(double_, HESSEXT_ISA)() { return table<double>; }

}  // namespace hessext::cpu
