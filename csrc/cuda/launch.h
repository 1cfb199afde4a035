// What kernels and their launches are written in. With HESSEXT_EMULATED the same sources run on the host, for tests.
#pragma once

#include <stdexcept>
#include <string>

#ifdef HESSEXT_EMULATED
#include "../emulator/cuda_on_host.h"
#else
#include <cuda_runtime.h>
#endif

#include "../outline.h"

namespace hessext::cuda {

constexpr int warp_size = 32;
constexpr unsigned all_lanes = 0xFFFFFFFFu;

// The block's shared memory as a struct S; a launch says how large it is.
template <class S>
__device__ __forceinline__ S& shared() {
#ifdef HESSEXT_EMULATED
    return *reinterpret_cast<S*>(emulator::self.shared);
#else
    extern __shared__ __align__(16) unsigned char bytes[];
    return *reinterpret_cast<S*>(bytes);
#endif
}

template <class T>
__device__ __forceinline__ T least(T a, T b) {
    return b < a ? b : a;
}

HESSEXT_ANYWHERE inline i64 blocks_for(i64 items, i64 each) { return (items + each - 1) / each; }

// Shared memory of `block_sum`.
template <int threads>
struct Scratch {
    double of_warp[threads / warp_size];
};

// Sum over the threads of a block, the same in all of them and always in the same order.
template <int threads>
__device__ __forceinline__ double block_sum(double value, Scratch<threads>& scratch) {
    for (int mask = warp_size / 2; mask; mask /= 2) value += __shfl_xor_sync(all_lanes, value, mask);
    const int warp = int(threadIdx.x) / warp_size;
    __syncthreads();  // an earlier sum may still be read
    if (threadIdx.x % warp_size == 0) scratch.of_warp[warp] = value;
    __syncthreads();
    double sum = 0;
    for (int w = 0; w < threads / warp_size; ++w) sum += scratch.of_warp[w];
    return sum;
}

// Shared memory of `lane_sum`.
template <int threads>
struct LaneScratch {
    double of_thread[threads];
};

// Sum over the warps of a block of what the same lane has in each, always in the same order; whole in the first warp.
template <int threads>
__device__ __forceinline__ double lane_sum(double value, LaneScratch<threads>& scratch) {
    scratch.of_thread[threadIdx.x] = value;
    __syncthreads();
    for (int t = int(threadIdx.x) + warp_size; t < threads; t += warp_size) value += scratch.of_thread[t];
    return value;
}

// ------------------------------------------------------------------------------------------------------ launches

#ifdef HESSEXT_EMULATED

template <class... P, class... A>
void launch(const char* name, void (*kernel)(P...), i64 blocks, int threads, std::size_t shared, const Stream&,
            A... arguments) {
    if (blocks) emulator::run(name, {unsigned(blocks)}, unsigned(threads), shared, [&] { kernel(P(arguments)...); });
}

#else

inline void check(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    std::string hint;
    if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion)
        hint = "; this build has no code for this GPU's architecture (hessext info)";
    throw std::runtime_error(std::string("CUDA: ") + what + ": " + cudaGetErrorString(error) + hint);
}

template <class... P, class... A>
void launch(const char* name, void (*kernel)(P...), i64 blocks, int threads, std::size_t shared, const Stream& stream,
            A... arguments) {
    if (!blocks) return;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(unsigned(blocks));
    config.blockDim = dim3(unsigned(threads));
    config.dynamicSmemBytes = shared;
    config.stream = static_cast<cudaStream_t>(stream.handle);
    const cudaError_t error = cudaLaunchKernelEx(&config, kernel, P(arguments)...);
    cudaGetLastError();  // cleared, so that the next launch does not report it
    check(error, name);
    check(cudaGetLastError(), name);
}

#endif

// HESSEXT_LAUNCH((kernel<T>), blocks, threads, shared bytes, stream, arguments...)
#ifdef HESSEXT_EMULATED  // where it stands says which T
#define HESSEXT_LAUNCH(kernel, ...) \
    launch((std::string(#kernel " ") + __PRETTY_FUNCTION__).c_str(), kernel, __VA_ARGS__)
#else
#define HESSEXT_LAUNCH(kernel, ...) launch(#kernel, kernel, __VA_ARGS__)
#endif

constexpr std::size_t most_shared = 48 << 10;  // that a block gets without asking

// Makes the stream's device the current one; the caller restores it.
void use_device(const Stream& stream);
int multiprocessors(const Stream& stream);
const void* any_kernel();  // of this build, to ask what its code was compiled for

// Blocks of a kernel that a multiprocessor holds at a time.
template <class Kernel>
int resident_blocks(Kernel kernel, int threads, std::size_t shared) {
#ifdef HESSEXT_EMULATED
    (void)kernel, (void)threads, (void)shared;
    return 2;
#else
    int blocks = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared), "occupancy");
    return blocks;
#endif
}

// Sizes of the pieces that work is done in; small ones for tests.
struct Limits {
    i64 span = 8192;                 // samples (or classes) summed in float32; in float64 beyond
    i64 workspace = i64(256) << 20;  // bytes for lists, and as much for sums in float64
    i64 blocks = i64(1) << 30;       // of a launch
};
const Limits& limits();

// Tensor cores add eight terms at a time, other sums one after the other, which loses more.
inline i64 span(bool tensor) { return tensor ? limits().span : (limits().span + 3) / 4; }

}  // namespace hessext::cuda
