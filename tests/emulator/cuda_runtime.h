// Stands in for CUDA's header of this name where the kernels run on the host, for tests: each thread of a block is a
// fiber, resumed in random order between barriers. Holds what csrc/cuda uses of CUDA, and nothing else.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

using std::exp;  // for float, too
using std::sqrt;

struct dim3 {
    unsigned x = 1, y = 1, z = 1;

    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

extern constinit thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace hessext::emulator {

extern constinit thread_local unsigned char* shared_memory;  // of the block; NaN before it is written

struct Launch {
    std::string kernel;  // its name, with template arguments
    dim3 grid;
    unsigned threads;                    // of a block
    std::size_t shared;                  // bytes
    std::vector<std::string> arguments;  // bytes of each
    std::function<void()> body;          // of one thread
};

// Blocks one after the other, in random order. Throws std::logic_error where threads of a block do not meet at a
// barrier.
void run(const Launch& launch);

// "rows<float>" of "void launch(...) [with auto kernel = rows<float>; A = {int}]", as GCC and Clang spell it.
std::string kernel_of(const std::string& caller);

void block_barrier();
// All 32 lanes of a warp hand in `size` bytes; returns those of lane 0, the next lane's `stride` bytes further on.
constexpr std::size_t stride = 64;
const unsigned char* warp_exchange(const void* value, std::size_t size);

inline unsigned lane() { return threadIdx.x % 32; }

template <class T>
T from_lane(T value, unsigned source) {
    T result;
    std::memcpy(&result, warp_exchange(&value, sizeof(T)) + source % 32 * stride, sizeof(T));
    return result;
}

// The matrix instruction of csrc/cuda/mma.h, float32 in TF32.
void multiply_16x8x8(float sum[4], const float left[4], const float right[2]);
void multiply_16x8x8(double sum[4], const double left[4], const double right[2]);

}  // namespace hessext::emulator

inline void __syncthreads() { hessext::emulator::block_barrier(); }
inline void __syncwarp() { hessext::emulator::warp_exchange(nullptr, 0); }

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    return hessext::emulator::from_lane(value, hessext::emulator::lane() ^ unsigned(mask));
}
inline unsigned __ballot_sync(unsigned, int condition) {
    const unsigned char* votes = hessext::emulator::warp_exchange(&condition, sizeof condition);
    unsigned result = 0;
    for (unsigned l = 0; l < 32; ++l) {
        int vote;
        std::memcpy(&vote, votes + l * hessext::emulator::stride, sizeof vote);
        result |= unsigned(vote != 0) << l;
    }
    return result;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// ------------------------------------------------------------------------------------------------------ runtime
// One device, like an H100 but for its size, unless tests say otherwise.

enum cudaError_t {
    cudaSuccess,
    cudaErrorNoKernelImageForDevice,
    cudaErrorUnsupportedPtxVersion,
    cudaErrorInsufficientDriver,
    cudaErrorStreamCaptureUnsupported
};
enum cudaDeviceAttr {
    cudaDevAttrMultiProcessorCount,
    cudaDevAttrComputeCapabilityMajor,
    cudaDevAttrComputeCapabilityMinor
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeRelaxed };
using cudaStream_t = void*;

namespace hessext::emulator {

extern int architecture;  // of the device, and what its code was compiled for: 90
extern int driver;        // the CUDA version that it is for
extern bool capturing;    // whether a graph is captured
extern thread_local cudaStreamCaptureMode capture_mode;
extern thread_local cudaError_t last_error;  // of this thread's calls, until it is asked for
inline cudaError_t noted(cudaError_t error) {
    if (error != cudaSuccess) last_error = error;
    return error;
}
void allow_shared(const void* kernel, int bytes);  // more than the 48 KiB that every launch may ask for
void check_shared(const void* kernel, const std::string& name, std::size_t bytes);
bool load(const void* kernel);  // whether it is loaded now: not while a graph is captured in the global mode

}  // namespace hessext::emulator

struct cudaFuncAttributes {
    int ptxVersion;
};
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    std::size_t dynamicSmemBytes;
    cudaStream_t stream;
};

inline const char* cudaGetErrorString(cudaError_t) { return "emulated"; }
inline cudaError_t cudaGetLastError() { return std::exchange(hessext::emulator::last_error, cudaSuccess); }
inline cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 13000, cudaSuccess; }
inline cudaError_t cudaDriverGetVersion(int* version) { return *version = hessext::emulator::driver, cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return hessext::emulator::noted(hessext::emulator::driver < 13000 ? cudaErrorInsufficientDriver : cudaSuccess);
}
inline cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
    std::swap(*mode, hessext::emulator::capture_mode);
    return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
    const int capability = hessext::emulator::architecture;
    *value = which == cudaDevAttrMultiProcessorCount      ? 4
             : which == cudaDevAttrComputeCapabilityMajor ? capability / 10
                                                          : capability % 10;
    return cudaSuccess;
}
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
    attributes->ptxVersion = hessext::emulator::architecture;
    return hessext::emulator::noted(hessext::emulator::load(kernel) ? cudaSuccess : cudaErrorStreamCaptureUnsupported);
}
inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int bytes) {
    hessext::emulator::allow_shared(kernel, bytes);
    return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, std::size_t) {
    return *blocks = 2, cudaSuccess;
}

namespace hessext::emulator {

// The caller is a template with a parameter `kernel`: its name says which one.
template <class... P, class... A>
cudaError_t launch(const char* caller, const cudaLaunchConfig_t* config, void (*kernel)(P...), A... arguments) {
    if (!load(reinterpret_cast<const void*>(kernel))) return noted(cudaErrorStreamCaptureUnsupported);
    const auto bytes = [](const auto& value) {
        return std::string(reinterpret_cast<const char*>(&value), sizeof value);
    };
    check_shared(reinterpret_cast<const void*>(kernel), kernel_of(caller), config->dynamicSmemBytes);
    run({kernel_of(caller),
         config->gridDim,
         config->blockDim.x,
         config->dynamicSmemBytes,
         {bytes(P(arguments))...},
         [&] { kernel(P(arguments)...); }});
    return cudaSuccess;
}

}  // namespace hessext::emulator

#define cudaLaunchKernelEx(...) hessext::emulator::launch(__PRETTY_FUNCTION__, __VA_ARGS__)
