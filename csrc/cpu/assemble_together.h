// Method `together`: with feature pairs (a, b) as rows and block pairs (i, j) as columns, T[(a, b), (i, j)] =
// sum_n (phi_n[a] psi_n[b]) Q_n[i, j] is one product that uses both symmetries and has little padding. Between
// neighbouring layers a second one, R[a, (i, j)] = sum_n phi_n[a] (r_n[j] act'_n[i]), is added to entries (a, i).
#pragma once

#include "epilogue.h"
#include "weights.h"

namespace hessext::cpu {

template <class T>
class TogetherAssembly : PairBatches<T> {
    using Base = PairBatches<T>;
    using Base::dense, Base::extra, Base::interrupt, Base::k, Base::q, Base::r, Base::threads;

    static constexpr i64 group_tiles = 4;  // column tiles that share one packed row tile
    static constexpr i64 patch_rows = 8, patch_cols = 16;

    const bool triangle = inner_triangle(r);  // feature pairs a <= b are enough
    std::vector<std::int32_t> first, second;  // the feature pairs, and with `extra` (a, 1) for every a
    i64 feature_pairs = 0;                    // without these
    i64 ld = 0;                               // distance of the rows of a tile

    // Addresses of the entries of a row tile: item[e] is written to out[start[e] + i * row_step[e] + j * col_step[e]].
    struct Places {
        i64 item[most_products], start[most_products], row_step[most_products], col_step[most_products];
    };

    void place(i64 r0, i64 count, bool mirror, Places& to) const {
        for (i64 e = 0; e < count; ++e) to.item[e] = e;
        if (mirror)  // in the order of the addresses
            std::sort(to.item, to.item + count, [&](i64 e, i64 f) {
                return std::pair(second[r0 + e], first[r0 + e]) < std::pair(second[r0 + f], first[r0 + f]);
            });
        for (i64 e = 0; e < count; ++e) {
            const i64 a = first[r0 + to.item[e]], b = second[r0 + to.item[e]];
            const i64 row_ld = mirror ? 1 : dense.ld, col_ld = mirror ? dense.ld : 1;
            to.start[e] = dense.rows.first(a) * row_ld + dense.cols.first(b) * col_ld;
            to.row_step[e] = dense.rows.stride(a) * row_ld;
            to.col_step[e] = dense.cols.stride(b) * col_ld;
        }
    }

    // Writes the entries of a row tile for one block (i, j), which is `column` of the tile.
    void scatter(const T* column, i64 count, const Places& to, Pair block, T* out) const {
        for (i64 e = 0; e < count; ++e)
            out[to.start[e] + block.first * to.row_step[e] + block.second * to.col_step[e]] = column[to.item[e] * ld];
    }

    // Writes them to all blocks that the pair stands for.
    void write(const T* column, i64 count, const Places& direct, const Places& mirror, Pair pair, T* out) const {
        for (i64 c = 0; c < this->copies(pair); ++c) {
            const Pair block = this->copy(pair, c);
            if (dense.direct) scatter(column, count, direct, block, out);
            if (dense.mirror) scatter(column, count, mirror, block, out);
        }
    }

    // Adds R[a, (i, j)], a0 <= a < a0 + count.
    void add_residual(const T* column, i64 a0, i64 count, Pair block, T* out) const {
        const i64 col = dense.cols.at(block.second, block.first);
        for (i64 e = 0; e < count; ++e) {
            const i64 row = dense.rows.at(block.first, a0 + e);
            if (dense.direct) out[row * dense.ld + col] += column[e * ld];
            if (dense.mirror) out[col * dense.ld + row] += column[e * ld];
        }
    }

    double sum_of_squares(const T* column, i64 r0, i64 count) const {
        double sum = 0;
        for (i64 e = 0; e < count; ++e) {
            const double value = double(column[e * ld]), square = value * value;
            sum += triangle && first[r0 + e] != second[r0 + e] ? 2 * square : square;
        }
        return sum;
    }

  public:
    TogetherAssembly(const Assembly<T>& request, const Kernels<T>& kernel, const Plan& plan, int threads)
        : Base(request, kernel, plan, threads) {
        // In patches of about a tile, so that the entries that a job writes share cache lines, mirrored or not.
        const i64 rows = r.left.size(), cols = r.right.size();
        for (i64 a0 = 0; a0 < rows; a0 += patch_rows)
            for (i64 b0 = 0; b0 < cols; b0 += patch_cols)
                for (i64 a = a0; a < std::min(rows, a0 + patch_rows); ++a)
                    for (i64 b = triangle ? std::max(a, b0) : b0; b < std::min(cols, b0 + patch_cols); ++b)
                        first.push_back(std::int32_t(a)), second.push_back(std::int32_t(b));
        feature_pairs = i64(first.size());
        for (i64 a = 0; extra && a < rows; ++a)
            first.push_back(std::int32_t(a)), second.push_back(std::int32_t(r.right.cols));
    }

    void run() {
        // Few block pairs are shared out by their rows. How does not depend on the threads, so that norms have the same
        // bits.
        const i64 most_rows = this->pair_count() > tile_cols ? most_products : most_products / 4;  // rounded up below
        const i64 rows = even(feature_pairs, most_rows, k.rows);
        const i64 row_tiles = (feature_pairs + rows - 1) / rows;
        const i64 extra_rows = extra ? r.left.size() : 0, extra_tiles = (extra_rows + rows - 1) / rows;
        const i64 held = samples_held(r.samples, double(feature_pairs)), views = extra ? 2 : 1;
        const i64 limit =
            this->batch_limit(views * held * i64(sizeof(T)) + (r.norms ? row_tiles * i64(sizeof(double)) : 0), k.cols);
        const i64 depth = std::min(chunk, r.samples);
        i64 group = even(limit, group_tiles * tile_cols, tile_cols);  // block pairs of one job
        const auto groups_of = [&](i64 pairs) { return (pairs + group - 1) / group; };
        while (group > k.cols && row_tiles * groups_of(limit) < threads)  // to keep every thread busy
            group = even(limit, group / 2, k.cols);
        ld = std::min(group, tile_cols) + tile_ld - tile_cols;
        const i64 tile_size = rows * ld, values_size = (group + tile_cols - 1) / tile_cols * tile_size;

        Buffer<T> weights(limit * held), extras(extra ? limit * held : 0), panels(threads * rows * depth);
        const bool long_sums = r.samples > span && sizeof(T) < sizeof(double), sliced = held < r.samples;
        const i64 all_tiles = row_tiles + extra_tiles;
        const i64 kept = sliced ? all_tiles * groups_of(limit) : threads;  // sums: of all jobs, or of those in hand
        Buffer<T> tiles(kept * values_size);
        Buffer<double> totals(long_sums ? kept * values_size : 0);
        Buffer<Places> places(threads * 2);
        std::vector<WeightScratch<T>> scratch(threads);
        std::vector<PairLister> listers(threads, PairLister(std::max(r.left.size(), r.right.size()) + 1));
        std::vector<double> partial(r.norms ? limit * row_tiles : 0);
        i64 done = 0;

        for (PairBatch batch = this->next_batch(limit); batch.count(); batch = this->next_batch(limit)) {
            this->reserve(scratch, batch);
            const i64 groups = groups_of(batch.count());
#pragma omp parallel num_threads(threads) if (threads > 1)
            {
                const FlushDenormals flush;
                const int me = omp_get_thread_num();
                T* panel = panels.get() + me * rows * depth;
                Places &direct = places.get()[2 * me], &mirror = places.get()[2 * me + 1];
                // Sums job `job` of one of the two products over the samples of a view. finished(t, column) gets the
                // sums of block pair t when they are complete.
                const auto sum_job = [&](const WeightView<T>& view, i64 job, i64 r0, i64 count, const auto& finished) {
                    const i64 t0 = job / all_tiles * group, pairs = std::min(group, batch.count() - t0);
                    const i64 sums = (sliced ? job : me) * values_size;
                    T* values = tiles.get() + sums;
                    multiply(view, r0, count, t0, pairs, listers[me], panel, values,
                             long_sums ? totals.get() + sums : nullptr, tile_size);
                    if (view.first + view.samples < r.samples) return;
                    for (i64 t = t0; t < t0 + pairs; ++t)
                        finished(t, values + (t - t0) / tile_cols * tile_size + (t - t0) % tile_cols);
                };
                for (i64 n0 = 0; n0 < r.samples; n0 += held) {
                    const i64 samples = std::min(held, r.samples - n0);
                    const bool writes = !r.norms && n0 + samples == r.samples;
                    const WeightView<T> view{weights.get(), extra ? extras.get() : nullptr, samples, k.cols, n0};
                    this->fill(batch, view, scratch[me]);
#pragma omp for schedule(dynamic)
                    for (i64 job = 0; job < row_tiles * groups; ++job) {
                        if (interrupt.raised()) continue;
                        const i64 at = job % row_tiles, r0 = at * rows, count = std::min(rows, feature_pairs - r0);
                        if (writes) place(r0, count, false, direct), place(r0, count, true, mirror);
                        sum_job(view, job / row_tiles * all_tiles + at, r0, count, [&](i64 t, const T* column) {
                            if (r.norms)
                                partial[t * row_tiles + at] = sum_of_squares(column, r0, count);
                            else
                                write(column, count, direct, mirror, batch.pair(t), this->base(done + t));
                        });
                    }
                    const WeightView<T> residual{extras.get(), nullptr, samples, k.cols, n0};
#pragma omp for schedule(dynamic)
                    for (i64 job = 0; job < extra_tiles * groups; ++job) {
                        if (interrupt.raised()) continue;
                        const i64 at = job % extra_tiles, a0 = at * rows, count = std::min(rows, extra_rows - a0);
                        sum_job(residual, job / extra_tiles * all_tiles + row_tiles + at, feature_pairs + a0, count,
                                [&](i64 t, const T* column) {
                                    add_residual(column, a0, count, batch.pair(t), this->base(done + t));
                                });
                    }
                }
            }
            interrupt.check();
            if (r.norms) add_squares(partial, row_tiles, batch.count(), r.norms + done);
            done += batch.count();
        }
    }

  private:
    // Multiplies the row tile from r0 on with the block pairs t0 .. t0+pairs-1, whose weights are packed, over the
    // samples of the view, and adds.
    void multiply(const WeightView<T>& view, i64 r0, i64 count, i64 t0, i64 pairs, PairLister& lister, T* panel,
                  T* values, double* total, i64 tile_size) const {
        const i64 row_panels = round_up(count, k.rows) / k.rows, end = view.first + view.samples;
        const ColumnPairs columns = lister(count, [&](i64 e) { return Pair{first[r0 + e], second[r0 + e]}; });
        const LongSum<T> sum(values, total, (pairs + tile_cols - 1) / tile_cols * (tile_size / ld),
                             round_up(std::min(tile_cols, pairs), k.cols), ld, view.first > 0);
        for (i64 n = view.first; n < end && !interrupt.raised(); n += chunk) {
            if (n && n % span == 0) sum.end_span();
            const i64 depth = std::min(chunk, end - n);
            k.pack_products(true, depth, r.left, r.right, nullptr, n, columns, panel, depth * k.rows);
            for (i64 t = 0; t < pairs; t += tile_cols)
                k.multiply(depth, panel, row_panels, view.data + view.at(t0 + t, n), k.cols * view.samples,
                           round_up(std::min(tile_cols, pairs - t), k.cols) / k.cols,
                           values + t / tile_cols * tile_size, ld, below_all);
        }
        if (end == r.samples) sum.finish();
    }
};

}  // namespace hessext::cpu
