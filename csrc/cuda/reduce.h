// Sums over the threads of a block, in a fixed order.
#pragma once

#include "launch.h"

namespace hessext::cuda {

// Shared memory of `block_sum`.
template <int threads>
struct BlockSum {
    double of_warp[threads / warp_size];
};

// Sum over the threads of a block, the same in all of them.
template <int threads>
__device__ __forceinline__ double block_sum(double value, BlockSum<threads>& memory) {
    for (int mask = warp_size / 2; mask; mask /= 2) value += __shfl_xor_sync(all_lanes, value, mask);
    const int warp = int(threadIdx.x) / warp_size;
    __syncthreads();  // an earlier sum may still be read
    if (threadIdx.x % warp_size == 0) memory.of_warp[warp] = value;
    __syncthreads();
    double sum = 0;
    for (int w = 0; w < threads / warp_size; ++w) sum += memory.of_warp[w];
    return sum;
}

// Shared memory of `lane_sum`.
template <int threads>
struct LaneSum {
    double of_thread[threads];
};

// Sum over the warps of a block, for each lane. The result is complete in the first warp.
template <int threads>
__device__ __forceinline__ double lane_sum(double value, LaneSum<threads>& memory) {
    memory.of_thread[threadIdx.x] = value;
    __syncthreads();
    for (int t = int(threadIdx.x) + warp_size; t < threads; t += warp_size) value += memory.of_thread[t];
    return value;
}

}  // namespace hessext::cuda
