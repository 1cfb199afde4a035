// What the GPU is, and what tests change of how it is used.
#include <atomic>

#include "launch.h"

namespace hessext::cuda {
namespace {

std::atomic<bool> tensor_cores_allowed{true};
Limits current_limits;

int attribute(const Stream& stream, cudaDeviceAttr which) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, which, stream.device), "cudaDeviceGetAttribute");
    return value;
}

}  // namespace

bool built() { return true; }

void set_tensor_cores(bool allowed) { tensor_cores_allowed = allowed; }

const Limits& limits() { return current_limits; }
void set_limits(i64 span, i64 workspace, i64 blocks) {
    const Limits usual;
    current_limits = {span ? span : usual.span, workspace ? workspace : usual.workspace,
                      blocks ? blocks : usual.blocks};
}

void use_device(const Stream& stream) {
    int current = -1;
    check(cudaGetDevice(&current), "cudaGetDevice");
    if (current != stream.device) check(cudaSetDevice(stream.device), "cudaSetDevice");
}

int multiprocessors(const Stream& stream) { return attribute(stream, cudaDevAttrMultiProcessorCount); }

// Not by the device alone: older PTX runs on newer ones, too, without their instructions. For float32 three TF32
// products must cost less than one of float32: TF32 has 8 times its rate on sm_80 and 90, but once to twice on sm_86,
// 89 and 120.
bool tensor_cores(const Stream& stream, std::size_t bytes) {
    cudaFuncAttributes attributes{};
    check(cudaFuncGetAttributes(&attributes, any_kernel()), "cudaFuncGetAttributes");
    if (!tensor_cores_allowed || attributes.ptxVersion < 80) return false;
    if (bytes == sizeof(double)) return true;
    const int major = attribute(stream, cudaDevAttrComputeCapabilityMajor);
    const int minor = attribute(stream, cudaDevAttrComputeCapabilityMinor);
    return (major == 8 && minor == 0) || major == 9 || major == 10;
}

}  // namespace hessext::cuda
