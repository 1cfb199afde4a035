// The weights of each outer pair, for every sample, or in a list of the samples of nonzero weight.
#pragma once

#include "workspace.h"

namespace hessext::cuda {

constexpr int list_threads = 512;
constexpr int weight_threads = 256;
constexpr int covariance_threads = 128;
constexpr int transpose_threads = 256;

// (V^T (diag p_n - p_n p_n^T) V)[i, l] = sum_c p_n[c] u[c, i] u[c, l], u[c, i] = V[c, i] - E_p V[., i], centred at the
// top class first. The sum is in T within 256 classes, and in float64 across them.
template <class T>
__device__ T covariance(const Curvature<T>& q, i64 n, i64 i, i64 l) {
    const T* p = q.probs + n * q.classes;
    const T *v = q.weight + i, *w = q.weight + l, *shift = q.shift + n * q.rows;
    const i64 top = q.top[n] * q.rows;
    const T v_top = v[top], w_top = w[top], v_shift = shift[i], w_shift = shift[l];
    double total = 0;
    for (i64 c0 = 0; c0 < q.classes; c0 += 256) {
        const i64 end = least(c0 + 256, q.classes);
        T sum = 0;
        for (i64 c = c0; c < end; ++c)
            sum += p[c] * ((v[c * q.rows] - v_top) - v_shift) * ((w[c * q.rows] - w_top) - w_shift);
        total += double(sum);
    }
    return T(total);
}

// Covariances out[t, n] of `count` pairs from `first` on. Neighbouring threads have neighbouring pairs, which share the
// probabilities and often a unit.
template <class T>
__global__ void covariances(Outline<T> outline, i64 first, i64 count, T* out) {
    const i64 samples = outline.r.samples;
    const i64 e = i64(blockIdx.x) * covariance_threads + threadIdx.x, t = e % count, n = e / count;
    if (n >= samples) return;
    const Pair pair = pair_at(outline, first + t);
    out[t * samples + n] = covariance(outline.r.curvature, n, pair.first, pair.second);
}

// Weight of pair t in sample n.
template <class T>
__device__ __forceinline__ T pair_weight(const Outline<T>& o, i64 n, i64 t, Pair pair, T covariance) {
    T result;
    o.with_weight(t, pair, [&](i64) { return covariance; }, [&](const auto& weight) { result = weight(n); });
    return result;
}

// Weights out[t, n] of the pairs from `first` on, for all samples. covariance [pairs, N] may be out itself.
template <class T>
__global__ void weigh_pairs(Outline<T> outline, i64 first, i64 count, const T* covariance, T* out) {
    const i64 e = i64(blockIdx.x) * weight_threads + threadIdx.x, samples = outline.r.samples;
    if (e >= count * samples) return;
    const i64 t = first + e / samples;
    out[e] = pair_weight(outline, e % samples, t, pair_at(outline, t), covariance ? covariance[e] : T(0));
}

// Shared memory of `list_samples`: the number of samples that each warp has found.
struct WarpCounts {
    int of_warp[list_threads / warp_size];
};

// One block per pair. Samples are listed in order, so that sums over a list have a fixed order.
template <class T>
__global__ void __launch_bounds__(list_threads) list_samples(Params<T> params) {
    WarpCounts& counts = shared<WarpCounts>();
    const Outline<T>& o = params.outline;
    const Curvature<T>& q = o.r.curvature;
    const SampleLists<T>& lists = params.lists;
    const i64 t = blockIdx.x, list = t * params.samples;
    const Pair pair = params.pair(t);
    const int lane = int(threadIdx.x) % warp_size, warp = int(threadIdx.x) / warp_size;
    i64 count = 0;
    for (i64 n0 = 0; n0 < params.samples; n0 += list_threads) {
        const i64 n = n0 + threadIdx.x;
        T weight = 0, extra = 0;
        if (n < params.samples) {
            const T covariance = params.covariances ? params.covariances[list + n] : T(0);
            weight = pair_weight(o, n, params.first_pair + t, pair, covariance);
            if (lists.extra) extra = o.residual_weight(n, pair);
        }
        const bool active = weight != T(0) || extra != T(0);
        const unsigned votes = __ballot_sync(all_lanes, active);
        if (lane == 0) counts.of_warp[warp] = __popc(votes);
        __syncthreads();
        i64 k = list + count + __popc(votes & ((1u << lane) - 1));
        for (int w = 0; w < list_threads / warp_size; ++w) {
            if (w < warp) k += counts.of_warp[w];
            count += counts.of_warp[w];
        }
        __syncthreads();  // before the counts are overwritten
        if (!active) continue;
        lists.index[k] = int(n);
        lists.weight[k] = weight;
        if (lists.extra) lists.extra[k] = extra;
        if (params.curvature_column && q.probs) {
            lists.at_top[k] = params.weight_columns[pair.first * q.classes + q.top[n]];
            lists.shift[k] = q.shift[n * q.rows + pair.first];
        }
    }
    if (threadIdx.x == 0) lists.count[t] = count;
}

// V^T [m, C] of V [C, m]
template <class T>
__global__ void transpose(const T* weight, i64 classes, i64 units, T* columns) {
    const i64 e = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (e < classes * units) columns[e] = weight[e % classes * units + e / classes];
}

}  // namespace hessext::cuda
