// Sums over pairs of samples: block norms of a layer in the form <Q_n, Q_n'> (phi_n . phi_n')^2.
#include <algorithm>

#include "gram_tiles.h"
#include "workspace.h"

namespace hessext::cuda {
namespace {

constexpr int tops_threads = 256, stage_warps = 8;

// A warp for 32 stages of 64 samples.
__global__ void __launch_bounds__(stage_warps* warp_size)
    find_small_stages(const float* p, i64 ld, i64 classes, i64 samples, i64 words, unsigned* small) {
    using Small = SmallStages;
    const i64 e = i64(blockIdx.x) * stage_warps + threadIdx.x / warp_size;
    if (e >= words * ceil_div(samples, Small::samples)) return;
    const i64 n = e / words * Small::samples + threadIdx.x % warp_size;
    unsigned found = 0;
    for (int stage = 0; stage < Small::bits; ++stage) {
        const i64 first = (e % words * Small::bits + stage) * Small::classes;
        bool all = true;
        for (i64 j = first; j < least(first + Small::classes, classes); ++j)
            for (i64 m = n; m < least(n + Small::samples, samples); m += warp_size)
                all = all && p[j * ld + m] <= Small::most;
        found |= unsigned(!__ballot_sync(all_lanes, !all)) << stage;
    }
    if (threadIdx.x % warp_size == 0) small[e] = found;
}

// What the top classes of both samples add; a thread has several entries.
template <class T>
__global__ void __launch_bounds__(tops_threads)
    gram_top_pairs(Gram<T> g, Tops<T> left, Tops<T> right, double* partial) {
    double on = 0, off = 0;
    for (i64 e = i64(blockIdx.x) * tops_threads + threadIdx.x; e < g.rows * g.cols;
         e += i64(gridDim.x) * tops_threads) {
        const i64 n = e / g.cols, m = e % g.cols;
        const double count = times(g, n, m);
        if (count == 0) continue;
        const TopSums sums = top_sums(g, left, right, n, m, power(g.left_power, n), power(g.right_power, m));
        on += count * summand(g, g.on, n, m, sums.on), off += count * summand(g, g.off, n, m, sums.off);
    }
    on = block_sum(on, shared<BlockSum<tops_threads>>());
    off = block_sum(off, shared<BlockSum<tops_threads>>());
    if (threadIdx.x == 0) Partial::put(partial, on, off);
}

// sums and rounded, two numbers each, += those of all blocks, in order.
__global__ void __launch_bounds__(tops_threads)
    add_partial(const double* partial, i64 count, double* sums, double* rounded) {
    for (int e = 0; e < (rounded ? 4 : 2); ++e) {
        double total = 0;
        for (i64 b = threadIdx.x; b < count; b += tops_threads) total += partial[Partial::sums * b + e];
        total = block_sum(total, shared<BlockSum<tops_threads>>());
        if (threadIdx.x == 0) (e < 2 ? sums[e] : rounded[e - 2]) += total;
    }
}

constexpr i64 most_top_blocks = 4096;

void add(const double* partial, i64 count, double* sums, double* rounded, const Stream& stream) {
    launch<add_partial>(1, tops_threads, sizeof(BlockSum<tops_threads>), stream, partial, count, sums, rounded);
}

// Memory of one call: the sums of each block, and which stages are small at the left and at the right.
struct GramMemory {
    double* partial;
    unsigned *left, *right;

    GramMemory(const Stream& stream, i64 blocks, i64 of_left = 0, i64 of_right = 0) {
        lay_out(stream.workspace(lay_out(nullptr, blocks, of_left, of_right)), blocks, of_left, of_right);
    }

  private:
    i64 lay_out(void* memory, i64 blocks, i64 of_left, i64 of_right) {
        Arena arena(memory);
        partial = arena.take<double>(Partial::sums * blocks);
        left = arena.take<unsigned>(of_left);
        right = arena.take<unsigned>(of_right);
        return arena.used();
    }
};

// Classes that are summed in T: whole stages, which have their places in lists.
template <class S>
i64 class_span(bool tensor) {
    return std::min<i64>(std::max<i64>(span(tensor) / S::depth, 1), StageList::most) * S::depth;
}

template <class T, bool tensor>
void launch_tiles(const Gram<T>& g, const SmallStages& small, i64 tiles, double* partial, const Stream& stream) {
    using S = GramShape<T>;
    using Memory = ListedMemory<T, S>;
    static_assert(sizeof(Memory) <= most_shared);
    if (g.products)
        launch<softmax_gram_tiles<T, S, tensor>>(tiles, S::threads, sizeof(Memory), stream, g, small,
                                                 class_span<S>(tensor), partial);
    else
        launch<gram_tiles<T, S, tensor>>(tiles, S::threads, sizeof(TileMemory<T, S>), stream, g, span(tensor), partial);
}

i64 words_of(i64 classes) { return ceil_div(classes, SmallStages::classes * SmallStages::bits); }

void find_small(const float* p, i64 ld, i64 classes, i64 samples, unsigned* small, const Stream& stream) {
    const i64 words = words_of(classes), warps = words * ceil_div(samples, SmallStages::samples);
    launch<find_small_stages>(ceil_div(warps, stage_warps), stage_warps * warp_size, 0, stream, p, ld, classes, samples,
                              words, small);
}

// Sums over small stages in tiles of their own, whose blocks are the first ones. Returns which stages these are.
SmallStages launch_small(const Gram<float>& g, const GramMemory& memory, i64 tiles, const Stream& stream) {
    using S = GramShape<float>;
    static_assert(S::depth == SmallStages::classes && S::side == SmallStages::samples);
    find_small(g.left, g.left_ld, g.depth, g.rows, memory.left, stream);
    if (memory.right) find_small(g.right, g.right_ld, g.depth, g.cols, memory.right, stream);
    const SmallStages small{memory.left, memory.right ? memory.right : memory.left, words_of(g.depth)};
    launch<softmax_gram_small_tiles<S>>(tiles, S::threads, sizeof(ListedMemory<float, S>), stream, g, small,
                                        class_span<S>(true), memory.partial);
    return small;
}
SmallStages launch_small(const Gram<double>&, const GramMemory&, i64, const Stream&) { return {}; }

}  // namespace

template <class T>
void gram_sums(const Gram<T>& g, double* sums, const Stream& stream) {
    use_device(stream);
    const bool tensor = tensor_cores(stream, sizeof(T));
    const bool rounds = tensor && sizeof(T) == 4 && g.rounded && g.products && g.weight && !g.on && !g.off;
    const Grid grid = tiles_of(g, GramShape<T>::side);
    const i64 tiles = grid.count(), blocks = rounds ? 2 * tiles : tiles, words = rounds ? words_of(g.depth) : 0;
    const GramMemory memory(stream, blocks, grid.rows * words, g.triangle ? 0 : grid.cols * words);
    const SmallStages small = rounds ? launch_small(g, memory, tiles, stream) : SmallStages{};
    double* rest = memory.partial + Partial::sums * (blocks - tiles);
    tensor ? launch_tiles<T, true>(g, small, tiles, rest, stream)
           : launch_tiles<T, false>(g, small, tiles, rest, stream);
    add(memory.partial, blocks, sums, rounds ? g.rounded : nullptr, stream);
}

template <class T>
void gram_tops(const Gram<T>& g, const Tops<T>& left, const Tops<T>& right, double* sums, const Stream& stream) {
    use_device(stream);
    const i64 blocks = std::min(ceil_div(g.rows * g.cols, 8 * tops_threads), most_top_blocks);
    const GramMemory memory(stream, blocks);
    launch<gram_top_pairs<T>>(blocks, tops_threads, sizeof(BlockSum<tops_threads>), stream, g, left, right,
                              memory.partial);
    add(memory.partial, blocks, sums, nullptr, stream);
}

HESSEXT_INSTANTIATE(gram_sums)
HESSEXT_INSTANTIATE(gram_tops)

}  // namespace hessext::cuda
