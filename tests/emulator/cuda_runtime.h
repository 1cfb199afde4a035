// Runs CUDA kernels on the host, for tests: each thread of a block is a fiber, resumed in random order between
// barriers. Holds what the kernels of csrc/cuda use of CUDA, and nothing else.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

using std::exp;  // for float, too
using std::sqrt;

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

namespace hessext::emulator {

struct Thread {
    dim3 index, block, block_size, grid;
    unsigned char* shared;  // of the block; NaN before it is written
};
extern thread_local Thread self;

// One launch: blocks one after the other, in random order. Throws std::logic_error where threads of a block do not meet
// at a barrier.
void run(const char* kernel, dim3 grid, unsigned threads, std::size_t shared, const std::function<void()>& body);

void block_barrier();
// All 32 lanes of a warp hand in `size` bytes; returns those of lane 0, the next lane's `stride` bytes further on.
constexpr std::size_t stride = 64;
const unsigned char* warp_exchange(const void* value, std::size_t size);

inline unsigned lane() { return self.index.x % 32; }

template <class T>
T from_lane(T value, unsigned source) {
    T result;
    std::memcpy(&result, warp_exchange(&value, sizeof(T)) + source % 32 * stride, sizeof(T));
    return result;
}

}  // namespace hessext::emulator

#define threadIdx (hessext::emulator::self.index)
#define blockIdx (hessext::emulator::self.block)
#define blockDim (hessext::emulator::self.block_size)
#define gridDim (hessext::emulator::self.grid)

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
