// What both methods of assembly share: the plan, the enumeration of outer pairs in batches, and their weights.
#pragma once

#include <omp.h>

#include "interrupt.h"
#include "memory.h"
#include "plan.h"
#include "sink.h"

namespace hessext::cpu {

// Size of the pieces, multiples of `unit`, when `total` is cut evenly into pieces of at most `most`.
inline i64 even(i64 total, i64 most, i64 unit) {
    const i64 pieces = (total + most - 1) / most;
    return round_up((total + pieces - 1) / pieces, unit);
}

template <class T>
class Context : protected Outline<T> {
    i64 next_pair_ = 0;

  protected:
    using Outline<T>::r;
    const Curvature<T>& q = r.curvature;
    const Kernels<T>& k;
    const Plan plan;
    const int threads;
    mutable Interrupt interrupt;

    Context(const Assembly<T>& request, const Kernels<T>& kernel, const Plan& plan, int threads)
        : Outline<T>(request, plan.outer), k(kernel), plan(plan), threads(threads) {}

    // Pairs in a batch whose workspace is `bytes` a pair, a multiple of `unit`.
    i64 batch_limit(i64 bytes, i64 unit) const {
        bytes += 6 * i64(sizeof(i64));  // the pair itself, its units
        if (q.kind == Kind::hidden) bytes += threads * k.lanes * i64(sizeof(T) + sizeof(double));
        return even(this->pair_count(), std::max(unit, batch_bytes / bytes / unit * unit), unit);
    }

    // The next outer pairs, at most `limit`; none at the end.
    PairBatch next_batch(i64 limit) {
        PairBatch batch{next_pair_};
        for (const i64 end = std::min(next_pair_ + limit, this->pair_count()); next_pair_ < end; ++next_pair_) {
            const Pair pair = this->pair(next_pair_);
            batch.pairs.push_back(pair.first);
            batch.pairs.push_back(pair.second);
        }
        if (q.kind == Kind::hidden) batch.index_units();
        return batch;
    }

    // Inside a parallel region: its threads fill the weights of a batch together.
    void fill(const PairBatch& batch, const WeightView<T>& view, WeightScratch<T>& scratch) const {
#pragma omp for schedule(static)
        for (i64 n = 0; n < r.samples; n += weight_step)
            if (!interrupt.raised())
                fill_weights(k, *this, batch, n, std::min(weight_step, r.samples - n), scratch, view);
    }

    void reserve(std::vector<WeightScratch<T>>& scratch, const PairBatch& batch) const {
        if (q.kind == Kind::hidden)
            for (auto& s : scratch) reserve_scratch(k, q, batch, s);
    }

    // Squared norms of a batch from the partial sums of its jobs, always in the same order.
    void add_up(const std::vector<double>& partial, i64 parts, i64 count, i64 done) const {
        for (i64 t = 0; t < count; ++t) {
            double sum = 0;
            for (i64 at = 0; at < parts; ++at) sum += partial[t * parts + at];
            r.norms[done + t] = sum;
        }
    }
};

}  // namespace hessext::cpu
