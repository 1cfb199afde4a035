// The entries of Q_n and of the features, the same on every device.
#pragma once

#include "core.h"

namespace hessext {

template <class T>
HESSEXT_HOST_DEVICE inline T feature(const Features<T>& f, i64 n, i64 a) {
    return a < f.cols ? f.data[n * f.ld + a] : T(1);
}

// 1 - p_n[j], for the top class as the sum of the other probabilities
template <class T>
HESSEXT_HOST_DEVICE inline T complement(const Curvature<T>& q, i64 n, i64 j) {
    return q.top[n] == j ? q.rest[n] : T(1) - q.probs[n * q.classes + j];
}

// Equations (5), (9), (15): c_n (delta_ij p_i - p_i p_j)
template <class T>
HESSEXT_HOST_DEVICE inline T output_curvature(const Curvature<T>& q, i64 n, i64 i, i64 j) {
    if (!q.probs) return i == j ? q.scale[n] : T(0);
    const T* p = q.probs + n * q.classes;
    return i == j ? q.scale[n] * p[i] * complement(q, n, i) : -q.scale[n] * p[i] * p[j];
}

// Equations (8), (14): act'_i act'_l (V^T B_n V)[i, l] from c_n, the slopes act' and inner = (V^T B_n V)[i, l] / c_n.
// An inactive unit has no curvature, even if that of the outputs overflows.
template <class T>
HESSEXT_HOST_DEVICE inline T hidden_gauss_newton(T scale, T slope_i, T slope_l, T inner) {
    const T factor = scale * slope_i * slope_l, product = factor * inner;
    return factor == T(0) ? T(0) : product;
}

// The same with the residual term delta_il bend_n[i]. The covariance (V^T B_n V)[i, l] / c_n is used with a softmax.
template <class T>
HESSEXT_HOST_DEVICE inline T hidden_curvature(const Curvature<T>& q, i64 n, i64 i, i64 l, T covariance) {
    const T* slope = q.slope + n * q.rows;
    const T sum = q.gauss_newton ? hidden_gauss_newton(q.scale[n], slope[i], slope[l],
                                                       q.probs ? covariance : q.gram[i * q.rows + l])
                                 : T(0);
    return i == l && q.bend ? sum + q.bend[n * q.rows + i] : sum;
}

// Equations (11), (18), Gauss-Newton term: act'_i (B_n V)[j, i], (B_n V)[j, i] = c_n p_j (V[j, i] - E_p V[., i])
template <class T>
HESSEXT_HOST_DEVICE inline T cross_curvature(const Curvature<T>& q, i64 n, i64 i, i64 j) {
    const T slope = q.slope[n * q.rows + i], v = q.weight[j * q.rows + i];
    if (slope == T(0)) return 0;
    if (!q.probs) return slope * (q.scale[n] * v);
    const T centred = (v - q.weight[q.top[n] * q.rows + i]) - q.shift[n * q.rows + i];
    return slope * (q.scale[n] * q.probs[n * q.classes + j] * centred);
}

// The terms of the top classes of samples n and m in the sums of `gram_tops`; down and across are the powers of n, m.
struct TopSums {
    double on, off;
};

template <class T>
HESSEXT_HOST_DEVICE inline TopSums top_sums(const Gram<T>& g, const Tops<T>& left, const Tops<T>& right, i64 n, i64 m,
                                            double down, double across) {
    const double others = g.products[n * g.cols + m];
    const double s = left.p[n] * left.rest[n], s_ = right.p[m] * right.rest[m];
    double on, tops, both;  // r_j = p_nj p_mj: at the top classes together, and twice their product
    if (left.top[n] == right.top[m]) {
        on = s * s_, tops = left.p[n] * right.p[m], both = 0;
    } else {
        const double p_ = across * double(left.at_other[n * g.cols + m]);
        const double p = down * double(right.at_other[m * g.rows + n]);
        on = s * p_ * (1 - p_) + s_ * p * (1 - p);
        tops = left.p[n] * p_ + right.p[m] * p, both = 2 * left.p[n] * p_ * right.p[m] * p;
    }
    return {on, both + 2 * tops * others + others * others};
}

}  // namespace hessext
