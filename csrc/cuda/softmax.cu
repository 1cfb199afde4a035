// What the softmax gives before any block: top classes, residual, shifts, products with B_n.
#include "reduce.h"

namespace hessext::cuda {
namespace {

constexpr int row_threads = 128;   // one block per sample
constexpr int item_threads = 256;  // one thread per entry
constexpr int scan_lanes = 32;     // classes side by side in `softmax_scan`
constexpr int shift_lanes = 8;     // classes side by side in `softmax_shift`

template <class T>
struct ArgMax {
    T value;
    i64 at;

    __device__ __forceinline__ void merge(const ArgMax& o) {  // the first of equals
        if (o.value > value || (o.value == value && o.at < at)) *this = o;
    }
};

template <class T>
struct TopMemory {
    ArgMax<T> of_warp[row_threads / warp_size];
    BlockSum<row_threads> block_sum;
};

// e^x for x <= 0, 0 below the normal range: what is left can be scaled up to 1.
__device__ __forceinline__ float exp_negative(float x) { return x < -87.f ? 0.f : exp(x); }
__device__ __forceinline__ double exp_negative(double x) { return x < -708. ? 0. : exp(x); }

template <class T>
__global__ void __launch_bounds__(row_threads) softmax_rows(T* logits, i64 classes, i64* top, T* rest) {
    TopMemory<T>& memory = shared<TopMemory<T>>();
    const i64 n = blockIdx.x;
    T* p = logits + n * classes;
    ArgMax<T> most{p[0], 0};
    for (i64 c = threadIdx.x; c < classes; c += row_threads) most.merge({p[c], c});
    for (int mask = warp_size / 2; mask; mask /= 2)
        most.merge({__shfl_xor_sync(all_lanes, most.value, mask), __shfl_xor_sync(all_lanes, most.at, mask)});
    if (threadIdx.x % warp_size == 0) memory.of_warp[threadIdx.x / warp_size] = most;
    __syncthreads();
    for (int w = 0; w < row_threads / warp_size; ++w) most.merge(memory.of_warp[w]);
    double others = 0;
    for (i64 c = threadIdx.x; c < classes; c += row_threads) {
        p[c] = c == most.at ? T(1) : exp_negative(p[c] - most.value);
        if (c != most.at) others += double(p[c]);
    }
    others = block_sum(others, memory.block_sum);
    for (i64 c = threadIdx.x; c < classes; c += row_threads) p[c] *= T(1 / (1 + others));
    if (threadIdx.x == 0) top[n] = most.at, rest[n] = T(others / (1 + others));
}

template <class T>
__global__ void label_residuals(const T* probs, const T* scale, const i64* label, const i64* top, const T* rest,
                                i64 samples, i64 classes, T* out) {
    const i64 e = i64(blockIdx.x) * item_threads + threadIdx.x, n = e / classes, c = e % classes;
    if (n >= samples) return;
    out[e] = c != label[n] ? scale[n] * probs[e] : c == top[n] ? -scale[n] * rest[n] : scale[n] * (probs[e] - T(1));
}

// One block per sample and 32 units, whose warps share the classes.
template <class T>
__global__ void __launch_bounds__(warp_size* shift_lanes)
    softmax_shifts(const T* probs, const i64* top, const T* weight, i64 classes, i64 units, T* shift) {
    const i64 groups = ceil_div(units, warp_size), n = i64(blockIdx.x) / groups;
    const int lane = int(threadIdx.x) % warp_size, warp = int(threadIdx.x) / warp_size;
    const i64 i = i64(blockIdx.x) % groups * warp_size + lane;
    double total = 0;
    if (i < units) {
        const T* p = probs + n * classes;
        const T at_top = weight[top[n] * units + i];
        for (i64 c = warp; c < classes; c += shift_lanes) total += double(p[c] * (weight[c * units + i] - at_top));
    }
    total = lane_sum(total, shared<LaneSum<warp_size * shift_lanes>>());
    if (warp || i >= units) return;
    shift[n * units + i] = T(total);
}

// out_n = c_n p_n (v_n - p_n . v_n), v_n centred at the top class first. One block per sample; out may be v.
template <class T>
__global__ void __launch_bounds__(row_threads)
    softmax_products(const T* probs, const T* scale, const i64* top, const T* v, i64 classes, T* out) {
    const i64 n = blockIdx.x;
    const T *p = probs + n * classes, *from = v + n * classes, at_top = from[top[n]];
    double mean = 0;
    for (i64 c = threadIdx.x; c < classes; c += row_threads) mean += double(p[c] * (from[c] - at_top));
    const T shift = T(block_sum(mean, shared<BlockSum<row_threads>>()));  // all have read at_top
    for (i64 c = threadIdx.x; c < classes; c += row_threads)
        out[n * classes + c] = scale[n] * (p[c] * ((from[c] - at_top) - shift));
}

// The largest logit seen, its class, and the sum of e^(l - largest) over the others.
template <class T>
struct Scan {
    T largest;
    i64 top;
    double others;

    __device__ __forceinline__ void merge(const Scan& o) {
        if (o.top < 0) return;  // has seen nothing
        if (top < 0) {
            *this = o;
            return;
        }
        const bool other = o.largest > largest || (o.largest == largest && o.top < top);
        const double decay = double(exp_negative(other ? largest - o.largest : o.largest - largest));
        others = other ? o.others + (others + 1) * decay : others + (o.others + 1) * decay;
        if (other) largest = o.largest, top = o.top;
    }
};

template <class T>
struct ScanMemory {
    Scan<T> of_warp[scan_lanes][warp_size];
};

// A block has 32 samples, side by side in a row of logits; its warps share the classes.
template <class T>
__global__ void __launch_bounds__(warp_size* scan_lanes)
    softmax_scans(const T* logits, i64 classes, i64 samples, i64 first, T* largest, i64* top, double* others) {
    ScanMemory<T>& memory = shared<ScanMemory<T>>();
    const int lane = int(threadIdx.x) % warp_size, warp = int(threadIdx.x) / warp_size;
    const i64 n = i64(blockIdx.x) * warp_size + lane;
    Scan<T> scan{0, -1, 0};
    for (i64 c = warp; c < classes && n < samples; c += scan_lanes) scan.merge({logits[c * samples + n], first + c, 0});
    memory.of_warp[warp][lane] = scan;
    __syncthreads();
    if (warp || n >= samples) return;
    if (first) scan = {largest[n], top[n], others[n]}, scan.merge(memory.of_warp[0][lane]);
    for (int w = 1; w < scan_lanes; ++w) scan.merge(memory.of_warp[w][lane]);
    largest[n] = scan.largest, top[n] = scan.top, others[n] = scan.others;
}

template <class T>
__global__ void softmax_other_classes(T* logits, i64 classes, i64 samples, i64 first, const T* largest, const i64* top,
                                      const double* others, const double* power) {
    const i64 e = i64(blockIdx.x) * item_threads + threadIdx.x, c = e / samples, n = e % samples;
    if (c >= classes) return;
    logits[e] = first + c == top[n] ? T(0) : exp_negative(logits[e] - largest[n]) * T(1 / power[n] / (1 + others[n]));
}

}  // namespace

template <class T>
void softmax(T* logits, i64 samples, i64 classes, i64* top, T* rest, const Stream& stream) {
    use_device(stream);
    launch<softmax_rows<T>>(samples, row_threads, sizeof(TopMemory<T>), stream, logits, classes, top, rest);
}

template <class T>
void label_residual(const T* probs, const T* scale, const i64* label, const i64* top, const T* rest, i64 samples,
                    i64 classes, T* out, const Stream& stream) {
    use_device(stream);
    launch<label_residuals<T>>(ceil_div(samples * classes, item_threads), item_threads, 0, stream, probs, scale, label,
                               top, rest, samples, classes, out);
}

template <class T>
void softmax_shift(const T* probs, const i64* top, const T* weight, i64 samples, i64 classes, i64 units, T* shift,
                   const Stream& stream) {
    use_device(stream);
    launch<softmax_shifts<T>>(samples * ceil_div(units, warp_size), warp_size * shift_lanes,
                              sizeof(LaneSum<warp_size * shift_lanes>), stream, probs, top, weight, classes, units,
                              shift);
}

template <class T>
void softmax_product(const T* probs, const T* scale, const i64* top, const T* v, i64 samples, i64 classes, T* out,
                     const Stream& stream) {
    use_device(stream);
    launch<softmax_products<T>>(samples, row_threads, sizeof(BlockSum<row_threads>), stream, probs, scale, top, v,
                                classes, out);
}

template <class T>
void softmax_scan(const T* logits, i64 classes, i64 samples, i64 first, T* largest, i64* top, double* others,
                  const Stream& stream) {
    use_device(stream);
    launch<softmax_scans<T>>(ceil_div(samples, warp_size), warp_size * scan_lanes, sizeof(ScanMemory<T>), stream,
                             logits, classes, samples, first, largest, top, others);
}

template <class T>
void softmax_others(T* logits, i64 classes, i64 samples, i64 first, const T* largest, const i64* top,
                    const double* others, const double* power, const Stream& stream) {
    use_device(stream);
    launch<softmax_other_classes<T>>(ceil_div(classes * samples, item_threads), item_threads, 0, stream, logits,
                                     classes, samples, first, largest, top, others, power);
}

HESSEXT_INSTANTIATE(softmax)
HESSEXT_INSTANTIATE(label_residual)
HESSEXT_INSTANTIATE(softmax_product)
HESSEXT_INSTANTIATE(softmax_shift)
HESSEXT_INSTANTIATE(softmax_scan)
HESSEXT_INSTANTIATE(softmax_others)

}  // namespace hessext::cuda
