// The softmax of a row of logits, where lanes are classes, and of class-major logits [classes, samples], where lanes
// are samples. The most probable class of each sample is kept apart from the sum of the others, so that 1 - p is never
// formed by subtraction.
#pragma once

#include "vectors.h"

namespace hessext::cpu {
namespace {

template <class T>
struct ExpOf;
template <>
struct ExpOf<float> {
    using Int = std::int32_t;
    static constexpr float magic = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
    static constexpr float least = -87.f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
    static constexpr int mantissa = 23, bias = 127, degree = 7;
};
template <>
struct ExpOf<double> {
    using Int = std::int64_t;
    static constexpr double magic = 6755399441055744.0;  // 1.5 * 2^52
    static constexpr double least = -708., ln2_high = 0.693145751953125, ln2_low = 1.42860682030941723212e-6;
    static constexpr int mantissa = 52, bias = 1023, degree = 13;
};

template <class T, i64 n>
using IntVector __attribute__((vector_size(n * sizeof(T)), may_alias)) = typename ExpOf<T>::Int;

// e^x for x <= 0, and 0 below the normal range. e^x = 2^k e^r with |r| <= log(2) / 2, and e^r is its Taylor series.
template <class T, i64 n>
inline Vector<T, n> exp_negative(Vector<T, n> x) {
    using E = ExpOf<T>;
    using Int = IntVector<T, n>;
    const Vector<T, n> shifted = x * T(1.44269504088896340736) + E::magic, k = shifted - E::magic;
    const Vector<T, n> r = (x - k * E::ln2_high) - k * E::ln2_low;
    T inverse[E::degree + 1] = {1};  // 1 / i!
    for (int i = 1; i <= E::degree; ++i) inverse[i] = inverse[i - 1] / T(i);
    Vector<T, n> sum = Vector<T, n>{} + inverse[E::degree];
#pragma GCC unroll 13
    for (int i = E::degree - 1; i >= 0; --i) sum = sum * r + inverse[i];
    const Vector<T, n> origin = Vector<T, n>{} + E::magic;
    const Int power = (((Int)shifted - (Int)origin) + E::bias) << E::mantissa;
    return x < E::least ? Vector<T, n>{} : sum * (Vector<T, n>)power;
}

// The sum is in T within slices of classes, and in float64 across them.
template <class T>
void softmax(i64 classes, T* row, i64* top, T* rest) {
    Vector<T> most = Vector<T>{} + row[0];
    i64 c = 0;
    for (; c + lanes<T> <= classes; c += lanes<T>) {
        const Vector<T> value = load(row + c);
        most = value > most ? value : most;
    }
    T largest = most[0];
    for (i64 s = 1; s < lanes<T>; ++s) largest = most[s] > largest ? most[s] : largest;
    for (; c < classes; ++c) largest = row[c] > largest ? row[c] : largest;
    i64 best = 0;
    while (best + 1 < classes && row[best] != largest) ++best;

    row[best] = -__builtin_inf();  // not among the others
    double others = 0;
    using One = Vector<T, 1>;
    for (i64 from = 0; from < classes; from += 1024) {
        const i64 end = from + 1024 < classes ? from + 1024 : classes;
        Vector<T> sum = {};
        for (c = from; c + lanes<T> <= end; c += lanes<T>) {
            const Vector<T> term = exp_negative<T, lanes<T>>(load(row + c) - largest);
            store(row + c, term);
            sum += term;
        }
        for (i64 s = 0; s < lanes<T>; ++s) others += double(sum[s]);
        for (; c < end; ++c) {
            const One term = exp_negative<T, 1>(load_as<One>(row + c) - largest);
            store(row + c, term);
            others += double(term[0]);
        }
    }
    const T inverse = T(1 / (1 + others));
    for (c = 0; c < classes; ++c) row[c] *= inverse;
    row[best] = inverse;
    *top = best;
    *rest = T(others / (1 + others));
}

// Works row by row, as the samples of a class are contiguous. It finds the largest logits of some rows, sums over the
// same rows while they are in the cache, and merges both into the results of earlier rows.
template <class T, i64 n>
void scan_rows(i64 rows, i64 first, const T* logits, i64 ld, i64 count, T* largest, i64* top, double* others) {
    using V = Vector<T, n>;
    using Int = IntVector<T, n>;
    using Index = typename ExpOf<T>::Int;
    T best[scan_samples], sum[scan_samples] = {};
    Index at[scan_samples] = {};
    for (i64 s = 0; s < count; ++s) best[s] = logits[s];
    for (i64 c = 1; c < rows; ++c)
        for (i64 s = 0; s < count; s += n) {
            const V value = load_as<V>(logits + c * ld + s), most = load_as<V>(best + s);
            const Int more = value > most, index = Int{} + Index(c);
            store(best + s, more ? value : most);
            store(at + s, more ? index : load_as<Int>(at + s));
        }
    for (i64 c = 0; c < rows; ++c)
        for (i64 s = 0; s < count; s += n) {
            const V term = exp_negative<T, n>(load_as<V>(logits + c * ld + s) - load_as<V>(best + s));
            store(sum + s, load_as<V>(sum + s) + (load_as<Int>(at + s) == Index(c) ? V{} : term));
        }
    using One = Vector<T, 1>;
    for (i64 s = 0; s < count; ++s) {
        const T gap = best[s] - largest[s], part = exp_negative<T, 1>(One{} + (gap > 0 ? -gap : gap))[0];
        if (first == 0 || gap > 0) {
            others[s] = double(sum[s]) + (first ? (others[s] + 1) * double(part) : 0);
            top[s] = first + at[s];
            largest[s] = best[s];
        } else {
            others[s] += (double(sum[s]) + 1) * double(part);
        }
    }
}

template <class T>
void softmax_scan(i64 classes, i64 first, const T* logits, i64 ld, i64 count, T* largest, i64* top, double* others) {
    constexpr i64 rows = 128;
    const i64 vectors = count / lanes<T> * lanes<T>;
    for (i64 c = 0; c < classes; c += rows) {
        const i64 some = classes - c < rows ? classes - c : rows;
        const T* from = logits + c * ld;
        scan_rows<T, lanes<T>>(some, first + c, from, ld, vectors, largest, top, others);
        scan_rows<T, 1>(some, first + c, from + vectors, ld, count - vectors, largest + vectors, top + vectors,
                        others + vectors);
    }
}

// p = e^(l - largest) / Z of one class, in place.
template <class T>
void softmax_row(i64 count, T* logits, const T* largest, const T* inverse) {
    i64 s = 0;
    for (; s + lanes<T> <= count; s += lanes<T>)
        store(logits + s, exp_negative<T, lanes<T>>(load(logits + s) - load(largest + s)) * load(inverse + s));
    using One = Vector<T, 1>;
    for (; s < count; ++s)
        store(logits + s,
              exp_negative<T, 1>(load_as<One>(logits + s) - load_as<One>(largest + s)) * load_as<One>(inverse + s));
}

template <class T, i64 W>
void split_width(i64 depth, i64 panels, const T* inverse, T* p, T* square) {
    constexpr i64 period = W * lanes<T>;  // after so many entries a vector and a row of a panel begin together again
    for (i64 q = 0; q < panels; ++q, inverse += W) {
        T repeated[period];
        for (i64 e = 0; e < period; ++e) repeated[e] = inverse[e % W];
        for (const T* end = p + depth * W; p < end;) {
            const i64 count = end - p < period ? end - p : period;
            i64 e = 0;
            for (; e + lanes<T> <= count; e += lanes<T>) {
                const Vector<T> value = load(p + e), squared = value * value;
                store(square + e, squared);
                store(p + e, value - load(repeated + e) * squared);
            }
            for (; e < count; ++e) {
                square[e] = p[e] * p[e];
                p[e] -= repeated[e] * square[e];
            }
            p += count, square += count;
        }
    }
}

template <class T>
void softmax_split(bool left, i64 depth, i64 panels, const T* inverse, T* p, T* square) {
    const auto run = left ? split_width<T, panel_rows> : split_width<T, panel_cols<T>>;
    run(depth, panels, inverse, p, square);
}

}  // namespace
}  // namespace hessext::cpu
