// Method `tiles`: for each outer pair one product left^T diag(weight) right over its samples of nonzero weight.
#pragma once

#include <numeric>

#include "context.h"

namespace hessext::cpu {

template <class T>
class TileAssembly : Context<T> {
    using Base = Context<T>;
    using Base::dense, Base::extra, Base::interrupt, Base::k, Base::plan, Base::q, Base::r, Base::threads;

    // One side of the product.
    struct Operand {
        const Features<T>* features;  // null: probabilities, or the cross-layer curvature of `unit`
        i64 size;
        i64 unit = -1;
        bool weighted = false;
        i64 patch = -1;  // column that `extra` is added to
    };

    // The samples of one outer pair that have a nonzero weight.
    struct Samples {
        i64 count;
        const i64* index;
        const T *weight, *extra;
    };

    const bool triangle = r.same_features;  // tile entries (r, c) with r <= c are enough
    Operand left{&r.left, r.left.size()}, right{&r.right, r.right.size()};
    bool flipped;                            // left and right have changed places: less padding
    i64 tall = tile_rows, wide = tile_cols;  // tiles in use
    std::vector<T> columns;                  // V^T [m, C], for the cross part

    struct Workspace {  // of one thread
        T *left, *right, *values;
        double *total, *sums;
        i64 *x, *y;
    };

  public:
    TileAssembly(const Assembly<T>& request, const Kernels<T>& kernel, const Plan& plan, int threads)
        : Base(request, kernel, plan, threads) {
        if (plan.outer == Outer::features) left = right = {nullptr, q.classes};
        if (plan.outer == Outer::mixed) {
            right = {nullptr, q.classes, 0};
            columns = transposed(q.weight, q.classes, q.rows);
        }
        right.weighted = true;
        const auto padded = [&](i64 a, i64 b) { return round_up(a, k.rows) * round_up(b, k.cols); };
        flipped = !triangle && padded(right.size, left.size) < padded(left.size, right.size);
        if (flipped) std::swap(left, right);
        const auto too_large = [&] {  // to keep every thread busy, or for the workspace
            return this->pair_count() * jobs() < 6 * threads || threads * tall * wide * i64(sizeof(T)) > batch_bytes;
        };
        while (wide > slab && too_large()) tall /= 2, wide /= 2;
    }

    void run() {
        const i64 list_bytes = r.samples * i64(sizeof(i64) + sizeof(T) * (extra ? 2 : 1));
        const i64 limit = this->batch_limit(list_bytes + (r.norms ? jobs() * i64(sizeof(double)) : 0), 1);
        const i64 depth = std::min(chunk, r.samples);
        const i64 rows = std::min(round_up(left.size, k.rows), tall);
        const i64 cols = std::min(round_up(right.size, k.cols), wide), packed_cols = std::min(cols, slab);

        Buffer<T> weights(limit * r.samples), extras(extra ? limit * r.samples : 0);
        Buffer<i64> lists(limit * r.samples), counts(limit);
        std::vector<i64> order(limit);  // pairs with the most samples first: no thread is left with a long one
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
                const Workspace work{packed,
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
                    const Samples samples{counts.get()[t], lists.get() + from, view.data + from,
                                          extra ? view.extra + from : nullptr};
                    const double squares =
                        run_job(batch.pair(t), done + t, at, samples, work);
                    if (r.norms) partial[t * jobs() + at] = squares;
                }
            }
            interrupt.check();
            if (r.norms) this->add_up(partial, jobs(), batch.count(), done);
            done += batch.count();
        }
        if (unit_major()) interleave();
    }

  private:
    i64 row_jobs() const { return (left.size + tall - 1) / tall; }
    i64 col_jobs() const { return (right.size + wide - 1) / wide; }
    i64 jobs() const { return row_jobs() * col_jobs(); }

    // Inside a parallel region: lists the samples of nonzero weight, compacting the weights in place.
    void list_nonzero(i64 pairs, const WeightView<T>& view, i64* lists, i64* counts) const {
#pragma omp for schedule(static)
        for (i64 t = 0; t < pairs; ++t) {
            i64 count = 0, *list = lists + t * r.samples;
            T *w = view.data + t * r.samples, *e = view.extra ? view.extra + t * r.samples : nullptr;
            for (i64 n = 0; n < r.samples; ++n) {
                const bool active = (w[n] != T(0)) | (e && e[n] != T(0));  // no branch: activity is not foreseeable
                list[count] = n;
                w[count] = w[n];
                if (e) e[count] = e[n];
                count += active;
            }
            counts[t] = count;
        }
    }

    // Computes one job's tile and writes it, or returns its sum of squares.
    double run_job(Pair pair, i64 t, i64 at, const Samples& s, const Workspace& work) const {
        const i64 r0 = at / col_jobs() * tall, c0 = at % col_jobs() * wide;
        const Tile<T> tile{work.values, std::min(tall, left.size - r0), std::min(wide, right.size - c0), r0 - c0,
                           triangle};
        if (tile.begin(0) >= tile.cols) return 0;  // wholly below the diagonal
        Operand a = left, b = right;
        Operand& weighted = a.weighted ? a : b;
        if (plan.outer == Outer::mixed) weighted.unit = pair.first;
        if (extra) weighted.patch = plan.outer == Outer::mixed ? pair.second : pair.first;
        if (plan.outer == Outer::mixed && !q.probs && !(extra && pair.first == pair.second))
            outer_product(pair.first, s, r0, c0, tile, work);
        else
            multiply(a, b, s, r0, c0, tile, work);
        if (plan.outer == Outer::features) replace_diagonal(s, r0, c0, tile, work);
        if (r.norms) return sum_of_squares(tile);
        write(tile, t, pair, r0, c0, work);
        return 0;
    }

    void multiply(const Operand& a, const Operand& b, const Samples& s, i64 r0, i64 c0, const Tile<T>& tile,
                  const Workspace& work) const {
        const i64 rows = round_up(tile.rows, k.rows);
        LongSum<T> sum(work.values, work.total, rows * tile_ld);
        for (i64 k0 = 0; k0 < s.count && !interrupt.raised(); k0 += chunk) {
            if (k0 && k0 % span == 0) sum.end_span();
            const i64 depth = std::min(chunk, s.count - k0);
            pack(true, a, s, k0, depth, r0, tile.rows, work.left);
            for (i64 c = 0; c < tile.cols; c += slab) {
                const i64 cols = std::min(slab, tile.cols - c);
                pack(false, b, s, k0, depth, c0 + c, cols, work.right);
                k.multiply(depth, work.left, rows / k.rows, work.right, depth * k.cols, round_up(cols, k.cols) / k.cols,
                           work.values + c, tile_ld, triangle ? tile.offset - c : below_all);
            }
        }
        sum.finish();
    }

    // Without softmax B_n V = c_n V is the same for all samples: the tile is sum_n weight_n x_n times a column of V.
    void outer_product(i64 unit, const Samples& s, i64 r0, i64 c0, const Tile<T>& tile, const Workspace& work) const {
        const i64 first = flipped ? c0 : r0, count = flipped ? tile.cols : tile.rows;
        const i64 stored = std::max<i64>(0, std::min(count, r.left.cols - first));
        double* sum = work.sums;
        std::fill_n(sum, count, 0.0);
        for (i64 k = 0; k < s.count; ++k) {
            const double w = s.weight[k];
            const T* x = r.left.data + s.index[k] * r.left.ld + first;
            for (i64 e = 0; e < stored; ++e) sum[e] += w * x[e];
            if (stored < count) sum[stored] += w;  // the feature that is always 1
        }
        const T* column = columns.data() + unit * q.classes + (flipped ? r0 : c0);
        for (i64 row = 0; row < tile.rows; ++row)
            for (i64 col = 0; col < tile.cols; ++col)
                tile.values[row * tile_ld + col] = T(flipped ? sum[col] * column[row] : sum[row] * column[col]);
    }

    void pack(bool to_left, const Operand& op, const Samples& s, i64 k0, i64 depth, i64 first, i64 count,
              T* panels) const {
        const i64 width = to_left ? k.rows : k.cols;
        const i64* index = s.index + k0;
        const T *weight = op.weighted ? s.weight + k0 : nullptr, *plus = extra ? s.extra + k0 : nullptr;
        if (op.unit >= 0) {
            k.pack_cross(to_left, depth, q, op.unit, columns.data() + op.unit * q.classes, index, weight,
                         op.patch == op.unit ? plus : nullptr, first, count, panels);
            return;
        }
        const Features<T> f = op.features ? *op.features : Features<T>{q.probs, q.classes, q.classes, false};
        const bool all = s.count == r.samples;  // consecutive rows
        const i64 stored = std::max<i64>(0, std::min(count, f.cols - first));
        if (stored)
            k.pack(to_left, depth, all ? f.data + k0 * f.ld : f.data, f.ld, all ? nullptr : index, weight, first,
                   stored, panels);
        const auto column = [&](i64 item) { return panels + item / width * width * depth + item % width; };
        if (stored < count) {  // the feature that is always 1 comes last
            if (stored % width == 0) std::fill_n(panels + stored * depth, width * depth, T(0));
            T* to = column(stored);
            for (i64 e = 0; e < depth; ++e) to[e * width] = weight ? weight[e] : T(1);
        }
        if (plus && op.patch >= first && op.patch < first + count) {
            T* to = column(op.patch - first);
            for (i64 e = 0; e < depth; ++e) to[e * width] += plus[e];
        }
    }

    // Entries (j, j) of p p^T become p_j (1 - p_j).
    void replace_diagonal(const Samples& s, i64 r0, i64 c0, const Tile<T>& tile, const Workspace& work) const {
        const i64 begin = std::max(r0, c0), end = std::min(r0 + tile.rows, c0 + tile.cols);
        if (begin >= end) return;
        std::fill_n(work.sums, end - begin, 0.0);
        k.softmax_diagonal(s.count, q, s.index, s.weight, begin, end - begin, work.sums);
        for (i64 j = begin; j < end; ++j) tile.values[(j - r0) * tile_ld + (j - c0)] = T(work.sums[j - begin]);
    }

    // All places of a tile, in each block that it is written to, and their mirror images.
    void write(const Tile<T>& tile, i64 t, Pair pair, i64 r0, i64 c0, const Workspace& work) const {
        T* out = this->base(t);
        for (i64 k = 0; k < this->copies(pair); ++k) {
            const Pair block = this->copy(pair, k);
            if (flipped ? dense.mirror : dense.direct) {
                number(block, r0, tile.rows, !flipped, false, work.x);
                number(block, c0, tile.cols, flipped, unit_major(), work.y);
                write_rows(tile, out, dense.ld, work.x, work.y);
            }
            if (flipped ? dense.direct : dense.mirror) {
                number(block, r0, tile.rows, !flipped, unit_major(), work.x);
                number(block, c0, tile.cols, flipped, false, work.y);
                write_columns(tile, out, dense.ld, work.x, work.y);
            }
        }
    }

    // Numbers of `count` tile items from e0 on, on the side of the rows or of the columns of H.
    void number(Pair block, i64 e0, i64 count, bool row, bool by_unit, i64* to) const {
        const Axis plain = row ? dense.rows : dense.cols;
        const bool features = this->tile_is_features(row);
        const Line line(by_unit && !features ? class_runs(plain) : plain, features, row ? block.first : block.second,
                        e0, 1);
        for (i64 e = 0; e < count; ++e) to[e] = line(e);
    }

    // Where classes fill the tile, neighbours in it lie a block apart in a row of the matrix, and every cache line
    // would be visited once per feature. Rows are therefore written feature by feature, and put in order at the end.
    bool unit_major() const { return plan.outer != Outer::blocks; }
    Axis class_runs(const Axis& a) const {
        const bool inside = a.step > a.cols;  // the bias is the last parameter of its block
        return {a.start, 1,        inside ? a.start + a.cols * q.classes : a.start_bias, inside ? 1 : a.step_bias,
                a.cols,  q.classes};
    }

    void interleave() const {
        if (dense.direct) interleave(dense.rows, q.rows, r.left.size(), dense.cols);
        if (dense.mirror && q.kind == Kind::output && !(dense.direct && r.same_features))
            interleave(dense.cols, q.classes, r.right.size(), dense.rows);
    }
    // In the rows of `rows`: [step, C] at the start of `cols` becomes [C, step].
    void interleave(const Axis& rows, i64 blocks, i64 size, const Axis& cols) const {
        const i64 step = cols.step, length = step * q.classes;
        if (step < 2) return;
        Buffer<T> copies(threads * length);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
        for (i64 row = 0; row < blocks * size; ++row) {
            if (interrupt.raised()) continue;
            T* to = dense.out + rows.at(row / size, row % size) * dense.ld + cols.start;
            T* copy = copies.get() + omp_get_thread_num() * length;
            std::copy_n(to, length, copy);
            for (i64 j = 0; j < q.classes; ++j)
                for (i64 a = 0; a < step; ++a) to[j * step + a] = copy[a * q.classes + j];
        }
        interrupt.check();
    }
};

}  // namespace hessext::cpu
