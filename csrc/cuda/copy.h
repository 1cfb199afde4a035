// Asynchronous copies from global to shared memory.
#pragma once

#include "launch.h"

namespace hessext::cuda {

// The most that one instruction copies: 16 aligned bytes.
template <class T>
struct alignas(16) Piece {
    static constexpr int size = 16 / sizeof(T);
    T value[size];
};

// Begins to copy `size` entries, of 4, 8 or 16 bytes in all. Before sm_80 the copy is synchronous.
template <int size, class T>
__device__ __forceinline__ void copy_async(T* to, const T* from) {
#if __CUDA_ARCH__ >= 800
    const unsigned address = unsigned(__cvta_generic_to_shared(to));
    if constexpr (size * sizeof(T) == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from));
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(address), "l"(from), "n"(size * sizeof(T)));
#else
    for (int e = 0; e < size; ++e) to[e] = from[e];
#endif
}

// Makes a group of the copies that this thread has begun since its last group.
__device__ __forceinline__ void commit_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;");
#endif
}

// Waits for all groups of this thread but the last `going_on`. Other threads see the copies after a barrier.
template <int going_on>
__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(going_on) : "memory");
#endif
}

}  // namespace hessext::cuda
