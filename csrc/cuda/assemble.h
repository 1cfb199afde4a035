// The launches of one assembly, batch by batch. The caller provides the memory, and nothing waits for the GPU.
#pragma once

#include "epilogue.h"
#include "mainloop.h"
#include "operands.h"
#include "weights.h"

namespace hessext::cuda {

template <class T, class S>
using AssemblyMemory = TileMemory<T, S, 3>;

// One block per tile and split. Without `split_sums` the samples fit one span and nothing is split, so that entries are
// written at once.
template <class T, class S, class Right, bool tensor>
__global__ void __launch_bounds__(S::threads, least_blocks<S>) multiply_tiles(Params<T> params) {
    AssemblyMemory<T, S>& memory = shared<AssemblyMemory<T, S>>();
    const Place at = params.place(i64(blockIdx.x) / params.splits, S::side);
    const i64 split = i64(blockIdx.x) % params.splits;
    const i64 count = params.lists.count ? params.lists.count[at.t] : params.samples;
    const i64 share = ceil_div(count, params.splits);
    const i64 begin = least(split * share, count), end = least(begin + share, count);

    Sums<T, S> sums;
    double* total = params.split_sums ? params.split_sums + i64(blockIdx.x) * S::side * S::side : nullptr;
    i64 from = begin;
    do {
        const i64 to = total ? least(from + params.span, end) : end;
        Operands<T, S, Right> operands(params, at, from, to);
        asynchronous_mainloop(operands, int(to - from + S::depth - 1) / S::depth, memory.stages,
                              [&](const typename S::Stage& stage) { sums.template add<tensor, S::depth / 8>(stage); });
        if (total) {
            sums.each([&](T& v, int r, int c) {
                double& entry = total[r * S::side + c];
                entry = from == begin ? double(v) : entry + double(v);
            });
            sums.clear();
        }
        from = to;
    } while (from < end);
    if (!total) epilogue(params, at, sums, memory);
}

// The parameters of a `multiply_tiles`.
template <class S, class R, bool tensor_>
struct TileKernel {
    using Shape = S;
    using Right = R;
    static constexpr bool tensor = tensor_;
};

template <class T>
class AssemblyRun {
    const Stream& stream_;
    Params<T> params_;
    const Outline<T>& o_ = params_.outline;
    const Curvature<T>& q_ = o_.r.curvature;

  public:
    AssemblyRun(const Assembly<T>& request, const Stream& stream)
        : stream_(stream), params_(Plan<T>(request, tensor_cores(stream, sizeof(T)))) {}

    void run() {
        with_kernel([&](auto kernel) {
            using K = decltype(kernel);
            using S = typename K::Shape;
            params_.split(multiprocessors(stream_) * resident_blocks(multiply_tiles<T, S, typename K::Right, K::tensor>,
                                                                     S::threads, sizeof(AssemblyMemory<T, S>)));
        });
        params_.lay_out(params_, stream_.workspace(params_.lay_out(params_, nullptr)));
        if (params_.curvature_column)
            launch<transpose<T>>(ceil_div(q_.classes * q_.rows, transpose_threads), transpose_threads, 0, stream_,
                                 q_.weight, q_.classes, q_.rows, params_.weight_columns);
        const i64 pairs = o_.pair_count();
        for (params_.first_pair = 0; params_.first_pair < pairs; params_.first_pair += params_.batch) {
            params_.pairs = std::min(params_.batch, pairs - params_.first_pair);
            weigh();
            multiply();
            finish();
        }
    }

  private:
    // f(TileKernel<...>{}) for the kernel in use.
    template <class F>
    void with_kernel(const F& f) const {
        if constexpr (sizeof(T) == sizeof(float))
            if (params_.side == 128) return with_shape<Shape<T, 128, 2, 4>>(f);
        params_.side == 64 ? with_shape<Shape<T, 64, 2, 2>>(f) : with_shape<Shape<T, 32, 2, 2>>(f);
    }
    template <class S, class F>
    void with_shape(const F& f) const {
        params_.curvature_column ? with_right<S, CurvatureColumn<T, S>>(f) : with_right<S, WeightedFeatures<T, S>>(f);
    }
    template <class S, class R, class F>
    void with_right(const F& f) const {
        params_.tensor ? f(TileKernel<S, R, true>{}) : f(TileKernel<S, R, false>{});
    }

    void weigh() {
        const i64 entries = params_.pairs * params_.samples;
        if (params_.covariance)
            launch<covariances<T>>(ceil_div(entries, covariance_threads), covariance_threads, 0, stream_, o_,
                                   params_.first_pair, params_.pairs, params_.covariances);
        if (params_.sparse)
            launch<list_samples<T>>(params_.pairs, list_threads, sizeof(WarpCounts), stream_, params_);
        else
            launch<weigh_pairs<T>>(ceil_div(entries, weight_threads), weight_threads, 0, stream_, o_,
                                   params_.first_pair, params_.pairs, params_.covariances, params_.lists.weight);
    }

    void multiply() {
        const i64 all = params_.pairs * params_.tiles.count();
        for (params_.first_tile = 0; params_.first_tile < all; params_.first_tile += params_.launch_tiles) {
            const i64 count = std::min(params_.launch_tiles, all - params_.first_tile);
            with_kernel([&](auto kernel) {
                using K = decltype(kernel);
                using S = typename K::Shape;
                constexpr std::size_t bytes = sizeof(AssemblyMemory<T, S>);
                static_assert(bytes <= most_shared);
                launch<multiply_tiles<T, S, typename K::Right, K::tensor>>(count * params_.splits, S::threads, bytes,
                                                                           stream_, params_);
                if (params_.long_sums) launch<add_splits<T, S>>(count, S::threads, bytes, stream_, params_);
            });
        }
    }

    void finish() {
        constexpr int threads = warp_size * diagonal_warps;
        if (o_.outer == Outer::features)
            launch<softmax_diagonals<T>>(params_.pairs * ceil_div(q_.classes, warp_size), threads,
                                         sizeof(LaneSum<threads>), stream_, params_);
        if (params_.tile_squares) launch<add_squares<T>>(ceil_div(params_.pairs, 128), 128, 0, stream_, params_);
    }
};

template <class T>
void assemble(const Assembly<T>& request, const Stream& stream) {
    use_device(stream);
    AssemblyRun<T>(request, stream).run();
}

}  // namespace hessext::cuda
