// How work is put on a stream: kernels, their shared memory, errors.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <climits>
#include <stdexcept>
#include <string>
#include <vector>

#include "../assembly.h"

namespace hessext::cuda {

constexpr int warp_size = 32;
constexpr unsigned all_lanes = 0xFFFFFFFFu;
constexpr std::size_t most_shared = 64 << 10;  // bytes of shared memory that a block may request, from sm_75 on

HESSEXT_HOST_DEVICE inline i64 ceil_div(i64 n, i64 by) { return (n + by - 1) / by; }

template <class T>
__device__ __forceinline__ T least(T a, T b) {
    return b < a ? b : a;
}

// The block's dynamic shared memory as an S. The launch states its size.
template <class S>
__device__ __forceinline__ S& shared() {
#ifdef __CUDACC__
    extern __shared__ __align__(16) unsigned char memory[];
#else  // tests/emulator
    unsigned char* const memory = emulator::shared_memory;
#endif
    return *reinterpret_cast<S*>(memory);
}

std::string driver_hint();  // names the installed driver, and the one that this build needs

inline void check(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // cleared, so that no later call reports it
    std::string hint;
    if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion)
        hint = "; this build has no code for this GPU's architecture (hessext info)";
    if (error == cudaErrorInsufficientDriver) hint = driver_hint();
    throw std::runtime_error(std::string("CUDA: ") + what + ": " + cudaGetErrorString(error) + hint);
}

// All kernels that this build launches.
std::vector<const void*>& kernels();
template <auto kernel>
struct Listed {
    static inline const bool done = (kernels().push_back(reinterpret_cast<const void*>(kernel)), true);
};

// launch<kernel<T>>(blocks, threads of a block, bytes of shared memory, stream, arguments...)
template <auto kernel, class... A>
void launch(i64 blocks, int threads, std::size_t shared, const Stream& stream, A... arguments) {
    [[maybe_unused]] const bool& listed = Listed<kernel>::done;
    if (!blocks) return;
    if (blocks > INT_MAX) throw std::runtime_error("CUDA: expected a launch of fewer than 2^31 blocks");
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(unsigned(blocks));
    config.blockDim = dim3(unsigned(threads));
    config.dynamicSmemBytes = shared;
    config.stream = static_cast<cudaStream_t>(stream.handle);
    const cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments...);
    if (error == cudaSuccess) return;
    std::string name = __PRETTY_FUNCTION__;  // "... [with auto kernel = NAME; ..."
    if (const auto from = name.find("kernel = "); from != std::string::npos) {
        name.erase(0, from + 9);
        name.resize(std::min(name.find(';'), name.size()));
    }
    check(error, name.c_str());
}

// Makes the stream's device the current one; the caller restores it. The first time, all kernels are loaded there. CUDA
// would load each at its first launch, which fails while a graph is captured.
void use_device(const Stream& stream);
int multiprocessors(const Stream& stream);

// The number of blocks of a kernel that a multiprocessor holds at a time.
template <class Kernel>
int resident_blocks(Kernel kernel, int threads, std::size_t shared) {
    int blocks = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared), "occupancy");
    return blocks;
}

// Sizes of the pieces into which work is cut; tests make them small.
struct Limits {
    i64 span = 8192;                 // samples (or classes) summed in float32; sums of several spans are in float64
    i64 workspace = i64(256) << 20;  // bytes for the samples of pairs, and as many for sums in float64
    i64 blocks = i64(1) << 30;       // of a launch
};
const Limits& limits();

// Tensor cores add eight terms at a time. Other sums add one term after the other, which loses more: spans are shorter.
inline i64 span(bool tensor) { return tensor ? limits().span : (limits().span + 3) / 4; }

}  // namespace hessext::cuda
