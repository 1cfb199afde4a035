// What the softmax gives before any block: top classes, residual, shifts, products with B_n.
#include <omp.h>

#include "launch.h"
#include "weights.h"

namespace hessext::cpu {

template <class T>
void softmax(T* logits, i64 samples, i64 classes, i64* top, T* rest, const By& by) {
    const Kernels<T>& k = kernels<T>();
    const int threads = team(by.count, 8 * double(samples) * double(classes));
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (i64 n = 0; n < samples; ++n) k.softmax(classes, logits + n * classes, top + n, rest + n);
}

template <class T>
void label_residual(const T* probs, const T* scale, const i64* label, const i64* top, const T* rest, i64 samples,
                    i64 classes, T* out, const By& by) {
    const int threads = team(by.count, double(samples) * double(classes));
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (i64 n = 0; n < samples; ++n) {
        const T *p = probs + n * classes, s = scale[n];
        T* r = out + n * classes;
        for (i64 c = 0; c < classes; ++c) r[c] = s * p[c];
        r[label[n]] = label[n] == top[n] ? -s * rest[n] : s * (p[label[n]] - T(1));
    }
}

template <class T>
void softmax_product(const T* probs, const T* scale, const i64* top, const T* v, i64 samples, i64 classes, T* out,
                     const By& by) {
    const Kernels<T>& k = kernels<T>();
    const int threads = team(by.count, double(samples) * double(classes));
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (i64 n = 0; n < samples; ++n) {
        const T *p = probs + n * classes, *from = v + n * classes, at_top = from[top[n]];
        const T mean = k.shift(p, from, classes, at_top);
        for (i64 c = 0; c < classes; ++c) out[n * classes + c] = scale[n] * (p[c] * ((from[c] - at_top) - mean));
    }
}

template <class T>
void softmax_shift(const T* probs, const i64* top, const T* weight, i64 samples, i64 classes, i64 units, T* shift,
                   const By& by) {
    const Kernels<T>& k = kernels<T>();
    const int threads = team(by.count, double(samples) * double(classes) * double(units));
    const std::vector<T> columns = transposed(weight, classes, units);
    Interrupt interrupt;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (i64 n = 0; n < samples; ++n) {
        if (interrupt.raised()) continue;
        for (i64 i = 0; i < units; ++i)
            shift[n * units + i] =
                k.shift(probs + n * classes, columns.data() + i * classes, classes, weight[top[n] * units + i]);
    }
    interrupt.check();
}

template <class T>
void softmax_scan(const T* logits, i64 classes, i64 samples, i64 first, T* largest, i64* top, double* others,
                  const By& by) {
    const Kernels<T>& k = kernels<T>();
    const int threads = team(by.count, 8 * double(samples) * double(classes));
    const i64 strip = std::min(scan_samples, round_up((samples + threads - 1) / threads, k.lanes));
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (i64 n = 0; n < samples; n += strip)
        k.softmax_scan(classes, first, logits + n, samples, std::min(strip, samples - n), largest + n, top + n,
                       others + n);
}

template <class T>
void softmax_others(T* logits, i64 classes, i64 samples, i64 first, const T* largest, const i64* top,
                    const double* others, const double* power, const By& by) {
    const Kernels<T>& k = kernels<T>();
    const int threads = team(by.count, 8 * double(samples) * double(classes));
    std::vector<T> inverse(samples);
    for (i64 n = 0; n < samples; ++n) inverse[n] = T(1 / power[n] / (1 + others[n]));
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (i64 c = 0; c < classes; ++c) k.softmax_row(samples, logits + c * samples, largest, inverse.data());
    for (i64 n = 0; n < samples; ++n)
        if (top[n] >= first && top[n] < first + classes) logits[(top[n] - first) * samples + n] = 0;
}

HESSEXT_INSTANTIATE(softmax)
HESSEXT_INSTANTIATE(label_residual)
HESSEXT_INSTANTIATE(softmax_product)
HESSEXT_INSTANTIATE(softmax_shift)
HESSEXT_INSTANTIATE(softmax_scan)
HESSEXT_INSTANTIATE(softmax_others)

}  // namespace hessext::cpu
