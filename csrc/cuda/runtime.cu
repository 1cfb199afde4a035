// What the GPU is, and which way products go on it.
#include <atomic>

#include "device.h"

namespace hessext::cuda {

namespace {
std::atomic<bool> tensor_cores_allowed{true};
}

bool built() { return true; }

void set_tensor_cores(bool allowed) { tensor_cores_allowed = allowed; }

#ifdef HESSEXT_EMULATED
int multiprocessors(Stream) { return 4; }
bool tensor_cores(Stream) { return tensor_cores_allowed; }
#else
namespace {
int attribute(cudaDeviceAttr which, Stream stream) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, which, stream.device), "cudaDeviceGetAttribute");
    return value;
}
}  // namespace

int multiprocessors(Stream stream) { return attribute(cudaDevAttrMultiProcessorCount, stream); }
bool tensor_cores(Stream stream) {
    return tensor_cores_allowed && attribute(cudaDevAttrComputeCapabilityMajor, stream) >= 8;
}
#endif

}  // namespace hessext::cuda
