// Ordinary products of matrices.
#include "launch.h"
#include "plan.h"
#include "tile.h"
#include "workspace.h"

namespace hessext::cpu {
namespace {

template <class T>
void pack(const Kernels<T>& k, bool to_left, const Factor<T>& f, i64 k0, i64 depth, i64 first, i64 count, T* panels) {
    if (f.item_step == 1)
        k.pack(to_left, depth, f.data + k0 * f.depth_step, f.depth_step, nullptr, nullptr, first, count, panels);
    else
        k.pack_across(to_left, depth, f.data + first * f.item_step + k0, f.item_step, count, panels);
}

}  // namespace

template <class T>
void product(const Factor<T>& left, const Factor<T>& right, i64 depth, T* out, i64 ld, const By& by) {
    const Kernels<T>& k = kernels<T>();
    const int threads = team(by.count, double(left.items) * double(right.items) * double(depth));
    i64 tall = tile_rows, wide = tile_cols;
    const auto jobs = [&](i64 rows, i64 cols) {
        return (left.items + rows - 1) / rows * ((right.items + cols - 1) / cols);
    };
    while (wide > slab && jobs(tall, wide) < 4 * threads) tall /= 2, wide /= 2;
    tall = even(left.items, tall, k.rows), wide = even(right.items, wide, k.cols);
    const i64 col_jobs = (right.items + wide - 1) / wide, all = jobs(tall, wide), most = std::min(chunk, depth);
    const bool long_sums = depth > span && sizeof(T) < sizeof(double);
    const i64 panels = (tall + std::min(wide, slab)) * most;
    Buffer<T> work(threads * (panels + tall * tile_ld));
    Buffer<double> totals(long_sums ? threads * tall * tile_ld : 0);
    Interrupt interrupt;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        const int me = omp_get_thread_num();
        T *packed_left = work.get() + me * (panels + tall * tile_ld), *packed_right = packed_left + tall * most;
        T* values = packed_left + panels;
        double* total = long_sums ? totals.get() + me * tall * tile_ld : nullptr;
#pragma omp for schedule(dynamic)
        for (i64 job = 0; job < all; ++job) {
            const i64 r0 = job / col_jobs * tall, c0 = job % col_jobs * wide;
            const i64 rows = std::min(tall, left.items - r0), cols = std::min(wide, right.items - c0);
            const i64 row_panels = round_up(rows, k.rows) / k.rows;
            const LongSum<T> sum(values, total, row_panels * k.rows, round_up(cols, k.cols), tile_ld);
            for (i64 k0 = 0; k0 < depth && !interrupt.raised(); k0 += chunk) {
                if (k0 && k0 % span == 0) sum.end_span();
                const i64 deep = std::min(chunk, depth - k0);
                pack(k, true, left, k0, deep, r0, rows, packed_left);
                for (i64 c = 0; c < cols; c += slab) {
                    const i64 some = std::min(slab, cols - c);
                    pack(k, false, right, k0, deep, c0 + c, some, packed_right);
                    k.multiply(deep, packed_left, row_panels, packed_right, deep * k.cols,
                               round_up(some, k.cols) / k.cols, values + c, tile_ld, below_all);
                }
            }
            sum.finish();
            for (i64 r = 0; r < rows; ++r) std::copy_n(values + r * tile_ld, cols, out + (r0 + r) * ld + c0);
        }
    }
    interrupt.check();
}

HESSEXT_INSTANTIATE(product)

}  // namespace hessext::cpu
