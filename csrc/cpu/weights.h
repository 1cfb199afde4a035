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
    T* extra;  // weights of what the residual adds between neighbouring layers, or null
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

// Makes ColumnPairs of numbers below `numbers`.
class PairLister {
    std::vector<std::int32_t> seen_;  // places in the list at hand, or -1

    // Lists number(e), e < count, writes the place of each, and returns the length.
    template <class Number>
    i64 list(i64 count, const Number& number, std::int32_t* columns, std::int32_t* places) {
        i64 length = 0;
        for (i64 e = 0; e < count; ++e) {
            std::int32_t& place = seen_[number(e)];
            if (place < 0) columns[length] = std::int32_t(number(e)), place = std::int32_t(length++);
            places[e] = place;
        }
        for (i64 c = 0; c < length; ++c) seen_[columns[c]] = -1;
        return length;
    }

  public:
    explicit PairLister(i64 numbers) : seen_(numbers, -1) {}

    template <class At>
    ColumnPairs operator()(i64 count, const At& pair) {
        ColumnPairs of;
        of.count = count;
        of.left_count = list(count, [&](i64 e) { return pair(e).first; }, of.left, of.first);
        of.right_count = list(count, [&](i64 e) { return pair(e).second; }, of.right, of.second);
        return of;
    }
};

// A batch of outer pairs, and for the hidden part the units that occur in it.
struct PairBatch {
    i64 first = 0;           // index of the first pair
    std::vector<i64> pairs;  // [count, 2]
    std::vector<i64> units;
    std::vector<std::int32_t> slots;    // [count, 2], positions in units
    std::vector<ColumnPairs> products;  // whole panels of the pairs, where weights are products

    i64 count() const { return i64(pairs.size()) / 2; }
    Pair pair(i64 t) const { return {pairs[2 * t], pairs[2 * t + 1]}; }
    void list_products(PairLister& lister, i64 panel) {
        const i64 most = most_products / panel * panel;
        for (i64 t = 0; t < count(); t += most)
            products.push_back(lister(std::min(most, count() - t), [&](i64 e) { return pair(t + e); }));
    }
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

// to[at(t, n)] = weight[n - n0] phi_n[i] psi_n[j] for panels of pairs t = (i, j)
template <class T>
void fill_products(const Kernels<T>& kernel, const PairBatch& batch, i64 n0, i64 count, const Features<T>& phi,
                   const Features<T>& psi, const T* weight, const WeightView<T>& view, T* to) {
    i64 t = 0;
    for (const ColumnPairs& some : batch.products) {
        kernel.pack_products(false, count, phi, psi, weight, n0, some, to + view.at(t, n0), view.panel * view.samples);
        t += some.count;
    }
}

// Whether weights are -c_n p_n[i] p_n[j] for i != j.
template <class T>
bool softmax_products(const Curvature<T>& q) {
    return q.kind == Kind::output && q.probs && q.gauss_newton;
}

template <class T>
void fill_softmax(const Kernels<T>& kernel, const Curvature<T>& q, const PairBatch& batch, i64 n0, i64 count,
                  const WeightView<T>& view) {
    T minus_scale[weight_step];
    for (i64 s = 0; s < count; ++s) minus_scale[s] = -q.scale[n0 + s];
    const Features<T> p{q.probs, q.classes, q.classes, false};
    fill_products(kernel, batch, n0, count, p, p, minus_scale, view, view.data);
}

template <class T>
void fill_residual(const Kernels<T>& kernel, const Outline<T>& outline, const PairBatch& batch, i64 n0, i64 count,
                   const WeightView<T>& view) {
    const Curvature<T>& q = outline.r.curvature;
    if (view.panel) {
        const Features<T> slope{q.slope, q.rows, q.rows, false}, residual{q.residual, q.cols, q.cols, false};
        fill_products<T>(kernel, batch, n0, count, slope, residual, nullptr, view, view.extra);
        return;
    }
    for (i64 t = 0; t < batch.count(); ++t)
        for (i64 s = 0; s < count; ++s) view.extra[view.at(t, n0 + s)] = outline.residual_weight(n0 + s, batch.pair(t));
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
    const Curvature<T>& q = outline.r.curvature;
    if (view.extra) fill_residual(kernel, outline, batch, n0, count, view);
    if (view.panel && q.kind == Kind::given) {
        for (i64 t = 0; t < batch.count(); t += view.panel)
            kernel.pack_across(false, count, q.entries + (batch.first + t) * outline.r.samples + n0, outline.r.samples,
                               std::min(view.panel, batch.count() - t), view.data + view.at(t, n0));
        return;
    }
    const bool products = view.panel && softmax_products(q);
    if (products) fill_softmax(kernel, q, batch, n0, count, view);
    for (i64 t = 0; t < batch.count(); ++t) {
        const Pair pair = batch.pair(t);
        if (products && pair.first != pair.second) continue;
        T* to = view.data + view.at(t, n0);
        const auto covariance = [](i64) { return T(0); };  // never called: the hidden kind has returned above
        outline.with_weight(batch.first + t, pair, covariance, [&](const auto& weight) {
            for (i64 s = 0; s < count; ++s) to[s * stride] = weight(n0 + s);
        });
    }
}

// The outer pairs of an assembly, batch by batch with their weights; the common base of both methods.
template <class T>
class PairBatches : protected Outline<T> {
    i64 next_pair_ = 0;
    PairLister lister_{std::max(this->r.curvature.rows, this->r.curvature.cols)};

  protected:
    using Outline<T>::extra, Outline<T>::r;
    const Curvature<T>& q = r.curvature;
    const Kernels<T>& k;
    const Plan plan;
    const int threads;
    mutable Interrupt interrupt;

    PairBatches(const Assembly<T>& request, const Kernels<T>& kernel, const Plan& plan, int threads)
        : Outline<T>(request, plan.outer), k(kernel), plan(plan), threads(threads) {}

    // The number of pairs in a batch, a multiple of `of`, if the workspace is `bytes` per pair.
    i64 batch_limit(i64 bytes, i64 of) const {
        bytes += 6 * i64(sizeof(i64));  // the pair itself, its units and slots, or its columns
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
        if (plan.method == Method::together && (extra || softmax_products(q))) batch.list_products(lister_, k.cols);
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
