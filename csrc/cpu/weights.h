// Weights of the outer pairs, the factors of left[n, .] right[n, .] in each sample n. Pairs are processed in batches.
#pragma once

#include <omp.h>

#include <algorithm>
#include <vector>

#include "launch.h"
#include "plan.h"

namespace hessext::cpu {

inline constexpr i64 weight_step = 64;  // samples whose weights one thread fills at a time

// Where the weight (and extra) of pair t in sample n is: data[at(t, n)], that of the next sample `stride` further on.
template <class T>
struct WeightView {
    T* data;
    T* extra;  // residual part of the cross layer (see `Operand` in mainloop.h), or null
    i64 samples;
    i64 panel;  // 0: pair-major [pairs, samples]; else panels [pairs / panel, samples, panel] as `multiply` reads them
    i64 first = 0;  // of its samples

    i64 at(i64 t, i64 n) const {
        n -= first;
        return panel ? t / panel * panel * samples + n * panel + t % panel : t * samples + n;
    }
    i64 stride() const { return panel ? panel : 1; }
};

// V^T [m, C] of V [C, m]
template <class T>
std::vector<T> transposed(const T* weight, i64 classes, i64 units) {
    std::vector<T> columns(units * classes);
    for (i64 i = 0; i < units; ++i)
        for (i64 j = 0; j < classes; ++j) columns[i * classes + j] = weight[j * units + i];
    return columns;
}

// Scratch of one thread for `fill_weights`.
template <class T>
struct WeightScratch {
    std::vector<T> centred, covariance;
    std::vector<T> slopes;  // of the batch's units [units, lanes], and a row of weights
    std::vector<double> sums;
};

// A batch of outer pairs, and for the hidden part the units that occur in it.
struct PairBatch {
    i64 first = 0;           // index of the first pair
    std::vector<i64> pairs;  // [count, 2]
    std::vector<i64> units;
    std::vector<std::int32_t> slots;  // [count, 2], positions in units

    i64 count() const { return i64(pairs.size()) / 2; }
    Pair pair(i64 t) const { return {pairs[2 * t], pairs[2 * t + 1]}; }
    void index_units() {
        units = pairs;
        std::sort(units.begin(), units.end());
        units.erase(std::unique(units.begin(), units.end()), units.end());
        slots.resize(pairs.size());
        for (std::size_t t = 0; t < pairs.size(); ++t)
            slots[t] = std::int32_t(std::lower_bound(units.begin(), units.end(), pairs[t]) - units.begin());
    }
};

template <class T>
void reserve_scratch(const Kernels<T>& kernel, const Curvature<T>& q, const PairBatch& batch, WeightScratch<T>& s) {
    s.slopes.resize((i64(batch.units.size()) + 1) * kernel.lanes);
    if (!q.probs || !q.gauss_newton) return;
    s.centred.resize(kernel.covariance_scratch(i64(batch.units.size())));
    s.covariance.resize(batch.count() * kernel.lanes);
    s.sums.resize(batch.count() * kernel.lanes);
}

// Fills the weights of the hidden part, Q_n[i, l] = act'_i act'_l (V^T B_n V)[i, l] + delta_il bend_n[i], for at most
// `lanes` samples, over which all inner loops run.
template <class T>
void fill_hidden(const Kernels<T>& kernel, const Curvature<T>& q, const PairBatch& batch, i64 n0, i64 count,
                 WeightScratch<T>& scratch, const WeightView<T>& view) {
    const i64 lanes = kernel.lanes;
    const bool softmax = q.gauss_newton && q.probs;
    if (softmax)
        kernel.covariance(q, n0, count, batch.units.data(), i64(batch.units.size()), batch.slots.data(), batch.count(),
                          scratch.covariance.data(), lanes, scratch.centred.data(), scratch.sums.data());
    T* slopes = scratch.slopes.data();
    if (q.gauss_newton)
        for (std::size_t e = 0; e < batch.units.size(); ++e)
            for (i64 s = 0; s < count; ++s) slopes[e * lanes + s] = q.slope[(n0 + s) * q.rows + batch.units[e]];
    T* row = slopes + i64(batch.units.size()) * lanes;
    for (i64 t = 0; t < batch.count(); ++t) {
        const i64 i = batch.pairs[2 * t], l = batch.pairs[2 * t + 1];
        const T *a = slopes + batch.slots[2 * t] * lanes, *b = slopes + batch.slots[2 * t + 1] * lanes;
        const T *scale = q.scale + n0, *covariance = scratch.covariance.data() + t * lanes;
        if (softmax)
            for (i64 s = 0; s < count; ++s) row[s] = hidden_gauss_newton(scale[s], a[s], b[s], covariance[s]);
        else if (q.gauss_newton)
            for (i64 s = 0; s < count; ++s) row[s] = hidden_gauss_newton(scale[s], a[s], b[s], q.gram[i * q.rows + l]);
        else
            std::fill_n(row, count, T(0));
        if (i == l && q.bend)
            for (i64 s = 0; s < count; ++s) row[s] += q.bend[(n0 + s) * q.rows + i];
        T* to = view.data + view.at(t, n0);
        for (i64 s = 0; s < count; ++s) to[s * view.stride()] = row[s];
    }
}

// Fills the weights of samples n0 .. n0+count-1 for all pairs of the batch.
template <class T>
void fill_weights(const Kernels<T>& kernel, const Outline<T>& outline, const PairBatch& batch, i64 n0, i64 count,
                  WeightScratch<T>& scratch, const WeightView<T>& view) {
    const i64 stride = view.stride();
    if (outline.r.curvature.kind == Kind::hidden) {
        for (i64 n = n0; n < n0 + count; n += kernel.lanes)
            fill_hidden(kernel, outline.r.curvature, batch, n, std::min(kernel.lanes, n0 + count - n), scratch, view);
        return;
    }
    for (i64 t = 0; t < batch.count(); ++t) {
        T* to = view.data + view.at(t, n0);
        const auto covariance = [](i64) { return T(0); };  // never called: the hidden kind has returned above
        outline.with_weight(batch.first + t, batch.pair(t), covariance, [&](const auto& weight) {
            for (i64 s = 0; s < count; ++s) to[s * stride] = weight(n0 + s);
        });
        if (!view.extra) continue;
        T* extra = view.extra + view.at(t, n0);
        for (i64 s = 0; s < count; ++s) extra[s * stride] = outline.residual_weight(n0 + s, batch.pair(t));
    }
}

// The outer pairs of an assembly, batch by batch with their weights; the common base of both methods.
template <class T>
class PairBatches : protected Outline<T> {
    i64 next_pair_ = 0;

  protected:
    using Outline<T>::r;
    const Curvature<T>& q = r.curvature;
    const Kernels<T>& k;
    const Plan plan;
    const int threads;
    mutable Interrupt interrupt;

    PairBatches(const Assembly<T>& request, const Kernels<T>& kernel, const Plan& plan, int threads)
        : Outline<T>(request, plan.outer), k(kernel), plan(plan), threads(threads) {}

    // The number of pairs in a batch, a multiple of `of`, if the workspace is `bytes` per pair.
    i64 batch_limit(i64 bytes, i64 of) const {
        bytes += 6 * i64(sizeof(i64));  // the pair itself, its units and slots
        if (q.kind == Kind::hidden) bytes += threads * k.lanes * i64(sizeof(T) + sizeof(double));
        return even(this->pair_count(), std::max(of, batch_bytes / bytes / of * of), of);
    }

    // The next outer pairs, at most `limit`; none at the end.
    PairBatch next_batch(i64 limit) {
        PairBatch batch;
        batch.first = next_pair_;
        for (const i64 end = std::min(next_pair_ + limit, this->pair_count()); next_pair_ < end; ++next_pair_) {
            const Pair pair = this->pair(next_pair_);
            batch.pairs.push_back(pair.first);
            batch.pairs.push_back(pair.second);
        }
        if (q.kind == Kind::hidden) batch.index_units();
        return batch;
    }

    // Inside a parallel region: its threads fill the weights of a view's samples together, and pad a last panel with 0.
    void fill(const PairBatch& batch, const WeightView<T>& view, WeightScratch<T>& scratch) const {
        const i64 padded = round_up(batch.count(), view.stride()), end = view.first + view.samples;
#pragma omp for schedule(static)
        for (i64 n = view.first; n < end; n += weight_step) {
            if (interrupt.raised()) continue;
            const i64 count = std::min(weight_step, end - n);
            fill_weights(k, *this, batch, n, count, scratch, view);
            for (i64 t = batch.count(); t < padded; ++t)
                for (i64 s = 0; s < count; ++s) view.data[view.at(t, n + s)] = 0;
        }
    }

    void reserve(std::vector<WeightScratch<T>>& scratch, const PairBatch& batch) const {
        if (q.kind == Kind::hidden)
            for (auto& s : scratch) reserve_scratch(k, q, batch, s);
    }
};

}  // namespace hessext::cpu
