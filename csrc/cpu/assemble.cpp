// Assembly of Hessian blocks: batches of outer pairs, weights of a batch, then independent tile jobs in any order.
#include <omp.h>

#include <memory>
#include <new>

#include "plan.h"
#include "sink.h"

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace hessext::cpu {
namespace {

constexpr i64 batch_bytes = i64(16) << 20;  // weights and sample lists of the pairs in hand
constexpr i64 group_tiles = 8;              // `products`: right tiles that share one packed left tile
constexpr double spawn_cost = 2e5;          // multiply-adds worth a thread

// Products of probabilities underflow; denormal arithmetic is slow and they do not matter.
class FlushDenormals {
#if defined(__SSE2__)
    unsigned saved = _mm_getcsr();

  public:
    FlushDenormals() { _mm_setcsr(saved | 0x8040); }
    ~FlushDenormals() { _mm_setcsr(saved); }
#else
  public:
    FlushDenormals() {}
    ~FlushDenormals() {}
#endif
    FlushDenormals(const FlushDenormals&) = delete;
    FlushDenormals& operator=(const FlushDenormals&) = delete;
};

template <class T>
class Buffer {  // aligned, uninitialized
    T* data_ = nullptr;

  public:
    explicit Buffer(i64 count)
        : data_(static_cast<T*>(::operator new(sizeof(T) * std::max<i64>(count, 1), std::align_val_t(64)))) {}
    ~Buffer() { ::operator delete(data_, std::align_val_t(64)); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    T* get() const { return data_; }
};

// One side of a tile product.
template <class T>
struct Operand {
    const Features<T>* features;  // null: probabilities, or the cross-layer curvature of `unit`
    i64 size;
    i64 unit = -1;
    bool weighted = false;
    i64 patch = -1;  // column that `extra` is added to
};

// The samples of one outer pair that have a nonzero weight.
template <class T>
struct Samples {
    i64 count;
    const i64* index;
    const T *weight, *extra;
};

template <class T>
class Assembler {
    const Assembly<T>& r;
    const Curvature<T>& q = r.curvature;
    const Kernels<T>& k = kernels<T>();
    const Plan plan = make_plan(k, r);
    const int threads;
    const bool within = r.part != Part::cross;
    // Without softmax all output blocks (i, i) are one and the same and the others are zero (the caller's part).
    const bool replicated = r.part == Part::output && !q.probs;
    const bool triangle = r.symmetric && plan.method == Method::tiles;
    const bool extra = r.part == Part::cross && q.residual && r.right.cols > 0;
    std::vector<i64> iota, zero;  // axes of a block, used by:
    const Dense<T> dense = destination();
    std::vector<T> columns;                         // V^T [m, C], for the cross part
    i64 next_row = 0, next_col = 0, next_pair = 0;  // where the enumeration of outer pairs stands

    // Blocks are written as small dense matrices of their own.
    Dense<T> destination() {
        if (r.dense.out) return r.dense;  // a symmetric part is computed for a <= b only: it needs both places
        const i64 n = std::max(r.left.size(), r.right.size());
        iota.resize(n), zero.resize(n);
        for (i64 a = 0; a < n; ++a) iota[a] = a;
        return {r.blocks, r.right.size(), iota.data(), zero.data(), iota.data(), zero.data(), true, r.symmetric};
    }

    i64 outer_rows() const {
        if (replicated) return 1;
        if (plan.outer == Outer::features) return r.left.size();
        return r.part == Part::output ? q.classes : q.units;
    }
    i64 outer_cols() const {
        if (plan.outer == Outer::features) return r.right.size();
        if (plan.outer == Outer::mixed) return r.right.size();
        return within ? outer_rows() : q.classes;
    }
    bool outer_triangle() const { return within && (plan.outer == Outer::blocks || r.symmetric); }

    // The next outer pairs, at most `limit`.
    PairBatch next_batch(i64 limit) {
        PairBatch batch;
        if (r.pairs) {
            const i64 count = std::min(limit, r.pair_count - next_pair);
            batch.pairs.assign(r.pairs + 2 * next_pair, r.pairs + 2 * (next_pair + count));
            next_pair += count;
        } else {
            const i64 rows = outer_rows(), cols = outer_cols();
            for (; next_row < rows && batch.count() < limit;) {
                batch.pairs.push_back(next_row);
                batch.pairs.push_back(next_col);
                if (++next_col == cols) next_col = outer_triangle() ? ++next_row : (++next_row, 0);
            }
        }
        if (r.part == Part::hidden) batch.index_units();
        return batch;
    }

    // ------------------------------------------------------------------------------------------------- writing

    // One tile of an outer pair: tile rows start at r0, columns at c0; flipped: tile rows run over the right index.
    void write_tile(const Tile& tile, i64 pair, i64 first, i64 second, i64 r0, i64 c0, bool flipped, i64* x,
                    i64* y) const {
        T* out = r.blocks ? dense.out + pair * r.left.size() * r.right.size() : dense.out;
        const bool twice = r.dense.out && outer_triangle() && first != second;
        const i64 copies = replicated && r.dense.out ? q.classes : twice ? 2 : 1;
        for (i64 copy = 0; copy < copies; ++copy, std::swap(first, second)) {
            if (replicated) first = second = copy;
            for (i64 e = 0; e < tile.rows; ++e) x[e] = number(first, second, r0 + e, !flipped);
            for (i64 e = 0; e < tile.cols; ++e) y[e] = number(first, second, c0 + e, flipped);
            if (flipped ? dense.mirror : dense.direct) write_rows(tile, out, dense.ld, x, y);
            if (flipped ? dense.direct : dense.mirror) write_columns(tile, out, dense.ld, x, y);
        }
    }

    // Row (or column) number of tile item e under the outer pair (first, second).
    i64 number(i64 first, i64 second, i64 e, bool row) const {
        switch (plan.outer) {
            case Outer::blocks:
                return row ? dense_row(dense, first, e) : dense_col(dense, second, e);
            case Outer::features:
                return row ? dense_row(dense, e, first) : dense_col(dense, e, second);
            default:
                return row ? dense_row(dense, first, e) : dense_col(dense, e, second);
        }
    }

    // ------------------------------------------------------------------------------------------ tiles, one per job

    void pack(bool left, const Operand<T>& op, const Samples<T>& s, i64 k0, i64 depth, i64 first, i64 count,
              T* panels) const {
        const i64 width = left ? k.rows : k.cols;
        const i64* index = s.index + k0;
        const T *weight = op.weighted ? s.weight + k0 : nullptr, *extra_weight = extra ? s.extra + k0 : nullptr;
        if (op.unit >= 0) {
            k.pack_cross(left, depth, q, op.unit, columns.data() + op.unit * q.classes, index, weight,
                         op.patch == op.unit ? extra_weight : nullptr, first, count, panels);
            return;
        }
        const Features<T> f = op.features ? *op.features : Features<T>{q.probs, q.classes, q.classes, false};
        const bool all = s.count == q.samples;  // contiguous rows
        const i64 stored = std::max<i64>(0, std::min(count, f.cols - first));
        if (stored)
            k.pack(left, depth, all ? f.data + k0 * f.ld : f.data, f.ld, all ? nullptr : index, weight, first, stored,
                   panels);
        const auto column = [&](i64 item) { return panels + item / width * width * depth + item % width; };
        if (stored < count) {  // the feature that is always 1 comes last
            if (stored % width == 0) std::fill_n(panels + stored * depth, width * depth, T(0));
            T* to = column(stored);
            for (i64 e = 0; e < depth; ++e) to[e * width] = weight ? weight[e] : T(1);
        }
        if (extra_weight && op.patch >= first && op.patch < first + count) {
            T* to = column(op.patch - first);
            for (i64 e = 0; e < depth; ++e) to[e * width] += extra_weight[e];
        }
    }

    // Entries (j, j) of p p^T become p_j (1 - p_j).
    void replace_diagonal(const Samples<T>& s, i64 r0, i64 c0, Tile& tile, double* values, double* diagonal) const {
        const i64 begin = std::max(r0, c0), end = std::min(r0 + tile.rows, c0 + tile.cols);
        if (begin >= end) return;
        std::fill_n(diagonal, end - begin, 0.0);
        k.softmax_diagonal(s.count, q, s.index, s.weight, begin, end - begin, diagonal);
        for (i64 j = begin; j < end; ++j) values[(j - r0) * tile_ld + (j - c0)] = diagonal[j - begin];
    }

    struct Shape {  // the tile grid of one outer pair
        Operand<T> left, right;
        bool flipped;
        i64 rows, cols;  // tiles

        i64 jobs() const { return rows * cols; }
    };

    Shape shape() const {
        Operand<T> a{&r.left, r.left.size()}, b{&r.right, r.right.size()};
        if (plan.outer == Outer::features) a = b = {nullptr, q.classes};
        if (plan.outer == Outer::mixed) b = {nullptr, q.classes, 0};
        b.weighted = true;
        const auto padded = [&](i64 x, i64 y) { return round_up(x, k.rows) * round_up(y, k.cols); };
        const bool flipped = !triangle && padded(b.size, a.size) < padded(a.size, b.size);
        if (flipped) std::swap(a, b);
        return {a, b, flipped, (a.size + tile_rows - 1) / tile_rows, (b.size + tile_cols - 1) / tile_cols};
    }

    // Widths that are computed at once; small problems get small buffers.
    static i64 span(i64 size, i64 width, i64 most) { return std::min(round_up(size, width), most); }

    void run_tiles() {
        const Shape shape = this->shape();
        const i64 per_pair = q.samples * i64(sizeof(i64) + sizeof(T) * (extra ? 2 : 1));
        const i64 total =
            r.pairs ? r.pair_count : outer_rows() * (outer_triangle() ? outer_rows() + 1 : 2 * outer_cols()) / 2;
        const i64 limit = std::min(total, std::max<i64>(1, batch_bytes / std::max<i64>(per_pair, 1)));
        const i64 depth = std::min(chunk, q.samples);
        const i64 rows = span(shape.left.size, k.rows, tile_rows), cols = span(shape.right.size, k.cols, tile_cols);

        Buffer<T> weights(limit * q.samples), extras(extra ? limit * q.samples : 0);
        Buffer<i64> lists(limit * q.samples), counts(limit);
        Buffer<T> panels(threads * (rows + cols) * depth);
        Buffer<double> tiles(threads * (rows * tile_ld + tile_ld));
        Buffer<i64> numbers(threads * (tile_rows + tile_cols));
        std::vector<WeightScratch<T>> scratch(threads);
        std::vector<double> partial(r.norms ? limit * shape.jobs() : 0);
        i64 done = 0;

        for (PairBatch batch = next_batch(limit); batch.count(); batch = next_batch(limit)) {
            for (auto& s : scratch)
                if (r.part == Part::hidden) reserve_scratch(k, q, batch, s);
            const WeightView<T> view{weights.get(), extra ? extras.get() : nullptr, q.samples, 0};
            const i64 jobs = batch.count() * shape.jobs();
#pragma omp parallel num_threads(threads) if (threads > 1)
            {
                const FlushDenormals flush;
                const int me = omp_get_thread_num();
                fill_and_list(batch, view, scratch[me], lists.get(), counts.get());
                T* left = panels.get() + me * (rows + cols) * depth;
                double* values = tiles.get() + me * (rows * tile_ld + tile_ld);
                i64* x = numbers.get() + me * (tile_rows + tile_cols);
#pragma omp for schedule(dynamic)
                for (i64 job = 0; job < jobs; ++job) {
                    // Pairs run fastest: their entries of the output share cache lines where classes fill the tile.
                    const bool inner = plan.outer != Outer::blocks;
                    const i64 t = inner ? job % batch.count() : job / shape.jobs();
                    const i64 at = inner ? job / batch.count() : job % shape.jobs();
                    const i64 r0 = at / shape.cols * tile_rows, c0 = at % shape.cols * tile_cols;
                    if (r.norms) partial[t * shape.jobs() + at] = 0;
                    if (triangle && r0 > c0 + tile_cols - 1) continue;
                    const i64 base = t * q.samples;
                    const Samples<T> s{counts.get()[t], lists.get() + base, weights.get() + base,
                                       extra ? extras.get() + base : nullptr};
                    Tile tile{values, std::min(tile_rows, shape.left.size - r0),
                              std::min(tile_cols, shape.right.size - c0), r0 - c0, triangle};
                    const i64 first = batch.pairs[2 * t], second = batch.pairs[2 * t + 1];
                    compute(shape, s, first, second, r0, c0, tile, left, left + rows * depth, values);
                    if (r.norms)
                        partial[t * shape.jobs() + at] = sum_of_squares(tile);
                    else
                        write_tile(tile, done + t, first, second, r0, c0, shape.flipped, x, x + tile_rows);
                }
            }
            if (r.norms)
                for (i64 t = 0; t < batch.count(); ++t) {
                    double sum = 0;
                    for (i64 at = 0; at < shape.jobs(); ++at) sum += partial[t * shape.jobs() + at];
                    r.norms[done + t] = sum;
                }
            done += batch.count();
        }
    }

    void compute(const Shape& shape, const Samples<T>& s, i64 first, i64 second, i64 r0, i64 c0, Tile& tile, T* left,
                 T* right, double* values) const {
        Operand<T> a = shape.left, b = shape.right;
        Operand<T>& weighted = a.weighted ? a : b;
        if (plan.outer == Outer::mixed) weighted.unit = first;
        if (extra) weighted.patch = plan.outer == Outer::mixed ? second : first;
        const i64 row_panels = round_up(tile.rows, k.rows) / k.rows, col_panels = round_up(tile.cols, k.cols) / k.cols;
        for (i64 row = 0; row < row_panels * k.rows; ++row)
            std::fill_n(values + row * tile_ld, col_panels * k.cols, 0.0);
        for (i64 k0 = 0; k0 < s.count; k0 += chunk) {
            const i64 depth = std::min(chunk, s.count - k0);
            pack(true, a, s, k0, depth, r0, tile.rows, left);
            pack(false, b, s, k0, depth, c0, tile.cols, right);
            k.multiply(depth, left, row_panels, right, depth * k.cols, col_panels, values, tile_ld,
                       triangle ? tile.offset : -tile_cols * tile_rows);
        }
        if (plan.outer == Outer::features) {
            const i64 rows = span(shape.left.size, k.rows, tile_rows);
            replace_diagonal(s, r0, c0, tile, values, values + rows * tile_ld);
        }
    }

    // Fills the weights of a batch, then lists the samples where they are not zero (compacting the weights in place).
    void fill_and_list(const PairBatch& batch, const WeightView<T>& view, WeightScratch<T>& scratch, i64* lists,
                       i64* counts) const {
        constexpr i64 step = 64;
#pragma omp for schedule(static)
        for (i64 n = 0; n < q.samples; n += step)
            fill_weights(k, r, plan.outer, batch, n, std::min(step, q.samples - n), scratch, view);
        if (!lists) return;
#pragma omp for schedule(static)
        for (i64 t = 0; t < batch.count(); ++t) {
            i64 count = 0, *list = lists + t * q.samples;
            T *w = view.data + t * q.samples, *e = view.extra ? view.extra + t * q.samples : nullptr;
            for (i64 n = 0; n < q.samples; ++n) {
                const bool active = w[n] != T(0) || (e && e[n] != T(0));
                list[count] = n;
                w[count] = w[n];
                if (e) e[count] = e[n];
                count += active;
            }
            counts[t] = count;
        }
    }

    // ------------------------------------------------------------------- products: feature pairs x block pairs

    void run_products() {
        std::vector<std::int32_t> a, b;  // the feature pairs
        for (i64 i = 0; i < r.left.size(); ++i)
            for (i64 j = r.symmetric ? i : 0; j < r.right.size(); ++j) a.push_back(i), b.push_back(j);
        const i64 items = i64(a.size()), row_tiles = (items + tile_rows - 1) / tile_rows;
        const i64 total = r.pairs ? r.pair_count : outer_rows() * (outer_rows() + 1) / 2;
        const i64 budget = batch_bytes / std::max<i64>(q.samples * i64(sizeof(T)), 1);
        const i64 limit = std::min(round_up(total, k.cols), std::max(k.cols, budget / k.cols * k.cols));
        const i64 depth = std::min(chunk, q.samples);
        const i64 rows = span(items, k.rows, tile_rows);
        const i64 group = std::min(group_tiles * tile_cols, round_up(limit, tile_cols));  // block pairs of one job

        Buffer<T> weights(limit * q.samples), panels(threads * rows * depth);
        Buffer<double> tiles(threads * (group / tile_cols) * rows * tile_ld);
        std::vector<WeightScratch<T>> scratch(threads);
        std::vector<double> partial(r.norms ? limit * row_tiles : 0);
        i64 done = 0;

        for (PairBatch batch = next_batch(limit); batch.count(); batch = next_batch(limit)) {
            for (auto& s : scratch)
                if (r.part == Part::hidden) reserve_scratch(k, q, batch, s);
            const WeightView<T> view{weights.get(), nullptr, q.samples, k.cols};
            for (i64 t = batch.count(); t < round_up(batch.count(), k.cols); ++t)  // padding of the last panel
                for (i64 n = 0; n < q.samples; ++n) view.data[view.offset(t) + n * k.cols] = 0;
            const i64 groups = (batch.count() + group - 1) / group, jobs = row_tiles * groups;
#pragma omp parallel num_threads(threads) if (threads > 1)
            {
                const FlushDenormals flush;
                const int me = omp_get_thread_num();
                fill_and_list(batch, view, scratch[me], nullptr, nullptr);
                T* left = panels.get() + me * rows * depth;
                double* values = tiles.get() + me * (group / tile_cols) * rows * tile_ld;
#pragma omp for schedule(dynamic)
                for (i64 job = 0; job < jobs; ++job) {
                    const i64 at = job % row_tiles, r0 = at * tile_rows, count = std::min(tile_rows, items - r0);
                    const i64 t0 = job / row_tiles * group, pairs = std::min(group, batch.count() - t0);
                    const i64 row_panels = round_up(count, k.rows) / k.rows;
                    std::fill_n(values, (pairs + tile_cols - 1) / tile_cols * rows * tile_ld, 0.0);
                    for (i64 n = 0; n < q.samples; n += chunk) {
                        const i64 deep = std::min(chunk, q.samples - n);
                        k.pack_products(deep, r.left, r.right, n, a.data() + r0, b.data() + r0, count, left);
                        for (i64 t = 0; t < pairs; t += tile_cols)
                            k.multiply(deep, left, row_panels, view.data + view.offset(t0 + t) + n * k.cols,
                                       k.cols * q.samples, (std::min(tile_cols, pairs - t) + k.cols - 1) / k.cols,
                                       values + t / tile_cols * rows * tile_ld, tile_ld, -tile_cols * tile_rows);
                    }
                    for (i64 t = 0; t < pairs; ++t) {
                        const double* column = values + t / tile_cols * rows * tile_ld + t % tile_cols;
                        const i64 i = batch.pairs[2 * (t0 + t)], j = batch.pairs[2 * (t0 + t) + 1];
                        if (r.norms)
                            partial[(t0 + t) * row_tiles + at] = squares(column, a.data() + r0, b.data() + r0, count);
                        else
                            scatter(column, a.data() + r0, b.data() + r0, count, done + t0 + t, i, j);
                    }
                }
            }
            if (r.norms)
                for (i64 t = 0; t < batch.count(); ++t) {
                    double sum = 0;
                    for (i64 at = 0; at < row_tiles; ++at) sum += partial[t * row_tiles + at];
                    r.norms[done + t] = sum;
                }
            done += batch.count();
        }
    }

    double squares(const double* column, const std::int32_t* a, const std::int32_t* b, i64 count) const {
        double sum = 0;
        for (i64 e = 0; e < count; ++e) {
            const double v = column[e * tile_ld];
            sum += r.symmetric && a[e] != b[e] ? 2 * v * v : v * v;
        }
        return sum;
    }

    // Entries (a, b) of block (i, j) and of all its mirror images.
    void scatter(const double* column, const std::int32_t* a, const std::int32_t* b, i64 count, i64 pair, i64 i,
                 i64 j) const {
        const bool twice = r.dense.out && i != j;
        T* out = r.blocks ? dense.out + pair * r.left.size() * r.right.size() : dense.out;
        for (int copy = 0; copy < (twice ? 2 : 1); ++copy, std::swap(i, j)) {
            if (dense.direct)
                for (i64 e = 0; e < count; ++e)
                    out[dense_row(dense, i, a[e]) * dense.ld + dense_col(dense, j, b[e])] = T(column[e * tile_ld]);
            if (dense.mirror)
                for (i64 e = 0; e < count; ++e)
                    out[dense_col(dense, j, b[e]) * dense.ld + dense_row(dense, i, a[e])] = T(column[e * tile_ld]);
        }
    }

  public:
    Assembler(const Assembly<T>& request, int most)
        : r(request), threads(int(std::max(1.0, std::min(double(most), plan.cost / spawn_cost)))) {
        if (plan.outer == Outer::mixed) {
            columns.resize(q.units * q.classes);
            for (i64 i = 0; i < q.units; ++i)
                for (i64 j = 0; j < q.classes; ++j) columns[i * q.classes + j] = q.weight[j * q.units + i];
        }
    }

    void run() {
        if (plan.method == Method::products)
            run_products();
        else
            run_tiles();
    }
};

}  // namespace

template <class T>
void assemble(const Assembly<T>& request, int threads) {
    Assembler<T>(request, threads).run();
}

template <class T>
void softmax_shift(const T* probs, const i64* top, const T* weight, i64 samples, i64 classes, i64 units, T* shift,
                   int threads) {
    const Kernels<T>& k = kernels<T>();
    const int team = int(std::max(1.0, std::min(double(threads), double(samples) * classes * units / spawn_cost)));
#pragma omp parallel for num_threads(team) if (team > 1) schedule(static)
    for (i64 n = 0; n < samples; ++n) k.shift(probs + n * classes, classes, weight, units, top[n], shift + n * units);
}

template <class T>
void curvature_entries(Part part, const Curvature<T>& curvature, const i64* pairs, i64 pair_count, T* out,
                       int threads) {
    const Kernels<T>& k = kernels<T>();
    Assembly<T> request{};
    request.part = part;
    request.curvature = curvature;
    PairBatch batch;
    batch.pairs.assign(pairs, pairs + 2 * pair_count);
    if (part == Part::hidden) batch.index_units();
    std::vector<WeightScratch<T>> scratch(threads);
    for (auto& s : scratch)
        if (part == Part::hidden) reserve_scratch(k, curvature, batch, s);
    const WeightView<T> view{out, nullptr, curvature.samples, 0};
    constexpr i64 step = 64;
#pragma omp parallel for num_threads(threads) if (threads > 1 && curvature.samples > step) schedule(static)
    for (i64 n = 0; n < curvature.samples; n += step)
        fill_weights(k, request, Outer::blocks, batch, n, std::min(step, curvature.samples - n),
                     scratch[omp_get_thread_num()], view);
}

#define HESSEXT_INSTANTIATE(T)                                                              \
    template void assemble<T>(const Assembly<T>&, int);                                     \
    template void softmax_shift<T>(const T*, const i64*, const T*, i64, i64, i64, T*, int); \
    template void curvature_entries<T>(Part, const Curvature<T>&, const i64*, i64, T*, int);
HESSEXT_INSTANTIATE(float)
HESSEXT_INSTANTIATE(double)

}  // namespace hessext::cpu
