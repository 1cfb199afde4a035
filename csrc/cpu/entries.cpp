// Single entries of Q_n, of any kind.
#include <omp.h>

#include "launch.h"
#include "weights.h"

namespace hessext::cpu {

template <class T>
void curvature_entries(const Curvature<T>& q, const i64* pairs, i64 pair_count, i64 samples, T* out, const By& by) {
    if (!pair_count) return;
    Assembly<T> request{};
    request.samples = samples, request.curvature = q;
    request.pairs = pairs, request.pair_count = pair_count;
    const Outline<T> outline(request, Outer::blocks);
    const bool hidden = q.kind == Kind::hidden;
    PairBatch batch;
    batch.pairs.assign(pairs, pairs + 2 * pair_count);
    if (hidden) batch.index_units();
    const int threads = team(by.count, double(samples) * double(pair_count) * (hidden ? double(q.classes) : 1));
    std::vector<WeightScratch<T>> scratch(threads);
    const Kernels<T>& k = kernels<T>();
    for (auto& s : scratch)
        if (hidden) reserve_scratch(k, q, batch, s);
    const WeightView<T> view{out, nullptr, samples, 0};
    Interrupt interrupt;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        const FlushDenormals flush;  // as in assembly: diagonal() and dense() agree
#pragma omp for schedule(static)
        for (i64 n = 0; n < samples; n += weight_step)
            if (!interrupt.raised())
                fill_weights(k, outline, batch, n, std::min(weight_step, samples - n), scratch[omp_get_thread_num()],
                             view);
    }
    interrupt.check();
}

HESSEXT_INSTANTIATE(curvature_entries)

}  // namespace hessext::cpu
