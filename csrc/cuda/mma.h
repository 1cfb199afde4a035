// Matrix instructions: 16 x 8 x 8 products by one warp on tensor cores. float64 products are native; a float32 product
// is made of three products of TF32 parts.
//
// For both types lane l = 4 g + t holds (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4) of the left 16 x 8, (t, g),
// (t + 4, g) of the right 8 x 8, and (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1) of the 16 x 8 sums.
#pragma once

#include "launch.h"

namespace hessext::cuda {

struct Lane {
    int g, t;

    __device__ __forceinline__ Lane() {
        const int lane = int(threadIdx.x) % warp_size;
        g = lane / 4, t = lane % 4;
    }
};

#ifdef __CUDACC__

__device__ __forceinline__ void multiply_16x8x8(float sum[4], const float left[4], const float right[2]) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(__float_as_uint(left[0])), "r"(__float_as_uint(left[1])), "r"(__float_as_uint(left[2])),
          "r"(__float_as_uint(left[3])), "r"(__float_as_uint(right[0])), "r"(__float_as_uint(right[1])));
#else
    __trap();  // `tensor_cores` says no
#endif
}

__device__ __forceinline__ void multiply_16x8x8(double sum[4], const double left[4], const double right[2]) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+d"(sum[0]), "+d"(sum[1]), "+d"(sum[2]), "+d"(sum[3])
        : "d"(left[0]), "d"(left[1]), "d"(left[2]), "d"(left[3]), "d"(right[0]), "d"(right[1]));
#elif __CUDA_ARCH__ >= 800
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int k = 0; k < 2; ++k)
            asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
                         : "+d"(sum[2 * half]), "+d"(sum[2 * half + 1])
                         : "d"(left[2 * k + half]), "d"(right[k]));
#else
    __trap();
#endif
}

#else  // tests/emulator

using emulator::multiply_16x8x8;

#endif

// high + low = v, where high is v rounded to TF32. Tensor cores ignore the 13 lowest bits of `low`. A GPU's own NaN,
// 0x7FFFFFFF, carries into the sign of `high`, and stays NaN in `low`. The largest v, from 2^128 - 2^116 on, become
// NaN.
__device__ __forceinline__ void split(float v, float& high, float& low) {
    high = __uint_as_float((__float_as_uint(v) + 0x1000u) & 0xFFFFE000u);
    low = v - high;
}

// An operand of `multiply_add`, prepared once and used in several products.
template <class T, int n>
struct Fragment {
    T value[n];

    Fragment() = default;
    __device__ __forceinline__ explicit Fragment(const T v[n]) {
#pragma unroll
        for (int e = 0; e < n; ++e) value[e] = v[e];
    }
};
template <int n>
struct Fragment<float, n> {
    float high[n], low[n];

    Fragment() = default;
    __device__ __forceinline__ explicit Fragment(const float v[n]) {
#pragma unroll
        for (int e = 0; e < n; ++e) split(v[e], high[e], low[e]);
    }
};

// sum[j] += left[k] right[k][j] for all k. Tensor cores truncate float32 sums. The products therefore start from zero,
// the small ones first, and are added to sum[j] by a rounded addition. With 16 samples in one product the bias is 7e-8
// of a sum of positive terms; with 8 it is 4e-8, and there are twice as many additions. The product low times low and
// the last bit of each `low` are left out, at most 2^-22 of a term each, and of random sign because `high` is rounded,
// not truncated. Instructions of one j depend on each other, so that all j are interleaved.
template <int steps, int n>
__device__ __forceinline__ void multiply_add(float sum[n][4], const Fragment<float, 4> left[steps],
                                             const Fragment<float, 2> right[steps][n]) {
    float part[n][4] = {};
#pragma unroll
    for (int k = 0; k < steps; ++k) {
#pragma unroll
        for (int j = 0; j < n; ++j) multiply_16x8x8(part[j], left[k].low, right[k][j].high);
#pragma unroll
        for (int j = 0; j < n; ++j) multiply_16x8x8(part[j], left[k].high, right[k][j].low);
    }
#pragma unroll
    for (int k = 0; k < steps; ++k)
#pragma unroll
        for (int j = 0; j < n; ++j) multiply_16x8x8(part[j], left[k].high, right[k][j].high);
#pragma unroll
    for (int j = 0; j < n; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[j][e] += part[j][e];
}
template <int steps, int n>
__device__ __forceinline__ void multiply_add(double sum[n][4], const Fragment<double, 4> left[steps],
                                             const Fragment<double, 2> right[steps][n]) {
#pragma unroll
    for (int k = 0; k < steps; ++k)
#pragma unroll
        for (int j = 0; j < n; ++j) multiply_16x8x8(sum[j], left[k].value, right[k][j].value);
}

}  // namespace hessext::cuda
