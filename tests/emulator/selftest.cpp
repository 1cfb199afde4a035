// A kernel with a barrier that can be left out, and one whose threads part: the emulator must find both.
#include <vector>

#include "cuda/launch.h"
#include "emulator.h"

namespace hessext::emulator {
namespace {

constexpr int threads = 64;

__global__ void reversed(int* values, bool barrier) {
    int* copy = cuda::shared<int[threads]>();
    copy[threadIdx.x] = values[threadIdx.x];
    if (barrier) __syncthreads();
    values[threadIdx.x] = copy[threads - 1 - threadIdx.x];
}

__global__ void parted() {
    if (threadIdx.x < threads / 2) __syncthreads();
}

}  // namespace

bool reverses(bool barrier) {
    std::vector<int> values(threads);
    for (int t = 0; t < threads; ++t) values[std::size_t(t)] = t;
    cuda::use_device({});
    cuda::launch<reversed>(1, threads, sizeof(int) * threads, {}, values.data(), barrier);
    for (int t = 0; t < threads; ++t)
        if (values[std::size_t(t)] != threads - 1 - t) return false;
    return true;
}

void part() { cuda::launch<parted>(1, threads, 0, {}); }

}  // namespace hessext::emulator
