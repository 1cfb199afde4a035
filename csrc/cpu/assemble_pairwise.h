// Method `pairwise`: for each outer pair one product left^T diag(weight) right over its samples of nonzero weight.
#pragma once

#include <numeric>

#include "epilogue.h"
#include "mainloop.h"

namespace hessext::cpu {

template <class T>
class PairwiseAssembly : PairBatches<T> {
    using Base = PairBatches<T>;
    using Base::extra, Base::interrupt, Base::k, Base::r, Base::threads;

    const Mainloop<T> mainloop{*this, k, interrupt};
    const Epilogue<T> epilogue{*this, mainloop.flipped};
    i64 tall = tile_rows, wide = tile_cols;  // size of a tile

  public:
    PairwiseAssembly(const Assembly<T>& request, const Kernels<T>& kernel, const Plan& plan, int threads)
        : Base(request, kernel, plan, threads) {
        const auto too_large = [&] {  // tiles are too few to keep every thread busy, or too large for the workspace
            return this->pair_count() * jobs() < 6 * threads || threads * tall * wide * i64(sizeof(T)) > batch_bytes;
        };
        while (wide > slab && too_large()) tall /= 2, wide /= 2;
        tall = even(std::max<i64>(1, mainloop.left.size), tall, k.rows);
        wide = even(std::max<i64>(1, mainloop.right.size), wide, k.cols);
    }

    void run() {
        const i64 list_bytes = r.samples * i64(sizeof(i64) + sizeof(T) * (extra ? 2 : 1));
        const i64 limit = this->batch_limit(list_bytes + (r.norms ? jobs() * i64(sizeof(double)) : 0), 1);
        const i64 depth = std::min(chunk, r.samples);
        const i64 rows = std::min(round_up(mainloop.left.size, k.rows), tall);
        const i64 cols = std::min(round_up(mainloop.right.size, k.cols), wide), packed_cols = std::min(cols, slab);

        Buffer<T> weights(limit * r.samples), extras(extra ? limit * r.samples : 0);
        Buffer<i64> lists(limit * r.samples), counts(limit);
        std::vector<i64> order(limit);  // pairs with the most samples first, so that no long one comes last
        Buffer<T> panels(threads * (rows + packed_cols) * depth);
        const bool long_sums = r.samples > span && sizeof(T) < sizeof(double);
        Buffer<T> values(threads * rows * tile_ld);
        Buffer<double> totals(threads * (long_sums ? rows + 1 : 1) * tile_ld);  // one row is `sums`
        Buffer<i64> numbers(threads * (rows + cols));
        std::vector<WeightScratch<T>> scratch(threads);
        std::vector<double> partial(r.norms ? limit * jobs() : 0);
        i64 done = 0;

        for (PairBatch batch = this->next_batch(limit); batch.count(); batch = this->next_batch(limit)) {
            this->reserve(scratch, batch);
            const WeightView<T> view{weights.get(), extra ? extras.get() : nullptr, r.samples, 0};
            const i64 all = batch.count() * jobs();
#pragma omp parallel num_threads(threads) if (threads > 1)
            {
                const FlushDenormals flush;
                const int me = omp_get_thread_num();
                this->fill(batch, view, scratch[me]);
                list_nonzero(batch.count(), view, lists.get(), counts.get());
                T* packed = panels.get() + me * (rows + packed_cols) * depth;
                double* total = totals.get() + me * (long_sums ? rows + 1 : 1) * tile_ld;
                i64* x = numbers.get() + me * (rows + cols);
                const TileWorkspace<T> work{packed,
                                            packed + rows * depth,
                                            values.get() + me * rows * tile_ld,
                                            long_sums ? total + tile_ld : nullptr,
                                            total,
                                            x,
                                            x + rows};
#pragma omp single
                {
                    std::iota(order.begin(), order.begin() + batch.count(), 0);
                    std::stable_sort(order.begin(), order.begin() + batch.count(),
                                     [&](i64 t, i64 u) { return counts.get()[t] > counts.get()[u]; });
                }
#pragma omp for schedule(dynamic)
                for (i64 job = 0; job < all; ++job) {
                    if (interrupt.raised()) continue;
                    const i64 t = order[job / jobs()], at = job % jobs(), from = t * r.samples;
                    const SampleList<T> samples{counts.get()[t], lists.get() + from, view.data + from,
                                                extra ? view.extra + from : nullptr};
                    const double squares = run_job(batch.pair(t), done + t, at, samples, work);
                    if (r.norms) partial[t * jobs() + at] = squares;
                }
            }
            interrupt.check();
            if (r.norms) add_squares(partial, jobs(), batch.count(), r.norms + done);
            done += batch.count();
        }
        epilogue.interleave(threads, interrupt);
    }

  private:
    i64 row_jobs() const { return (mainloop.left.size + tall - 1) / tall; }
    i64 col_jobs() const { return (mainloop.right.size + wide - 1) / wide; }
    i64 jobs() const { return row_jobs() * col_jobs(); }

    // Inside a parallel region: lists the samples of nonzero weight, compacting the weights in place.
    void list_nonzero(i64 pairs, const WeightView<T>& view, i64* lists, i64* counts) const {
#pragma omp for schedule(static)
        for (i64 t = 0; t < pairs; ++t) {
            i64 count = 0, *list = lists + t * r.samples;
            T *w = view.data + t * r.samples, *e = view.extra ? view.extra + t * r.samples : nullptr;
            for (i64 n = 0; n < r.samples; ++n) {
                const bool active = (w[n] != T(0)) | (e && e[n] != T(0));  // no branch: activity is unpredictable
                list[count] = n;
                w[count] = w[n];
                if (e) e[count] = e[n];
                count += active;
            }
            counts[t] = count;
        }
    }

    // Computes one job's tile and writes it, or returns its sum of squares.
    double run_job(Pair pair, i64 t, i64 at, const SampleList<T>& s, const TileWorkspace<T>& work) const {
        const i64 r0 = at / col_jobs() * tall, c0 = at % col_jobs() * wide;
        const Tile<T> tile{work.values, std::min(tall, mainloop.left.size - r0),
                           std::min(wide, mainloop.right.size - c0), r0 - c0, mainloop.triangle};
        if (tile.begin(0) >= tile.cols) return 0;  // wholly below the diagonal
        mainloop.run(pair, s, r0, c0, tile, work);
        if (r.norms) return sum_of_squares(tile);
        epilogue.write(tile, t, pair, r0, c0, work.x, work.y);
        return 0;
    }
};

}  // namespace hessext::cpu
