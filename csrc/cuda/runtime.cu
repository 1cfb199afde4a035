// What the GPU is, and how work goes on it.
#include <atomic>

#include "device.h"

namespace hessext::cuda {

namespace {
std::atomic<bool> tensor_cores_allowed{true};
Limits current_limits;
}  // namespace

bool built() { return true; }

void set_tensor_cores(bool allowed) { tensor_cores_allowed = allowed; }

const Limits& limits() { return current_limits; }
void set_limits(i64 span, i64 workspace, i64 blocks) {
    const Limits usual;
    current_limits = {span ? span : usual.span, workspace ? workspace : usual.workspace,
                      blocks ? blocks : usual.blocks};
}

#ifdef HESSEXT_EMULATED

void use_device(const Stream&) {}
int multiprocessors(const Stream&) { return 4; }
bool tensor_cores(const Stream&) { return tensor_cores_allowed; }

#else

void use_device(const Stream& stream) {
    int current = -1;
    check(cudaGetDevice(&current), "cudaGetDevice");
    if (current != stream.device) check(cudaSetDevice(stream.device), "cudaSetDevice");
}

int multiprocessors(const Stream& stream) {
    int count = 0;
    check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, stream.device), "cudaDeviceGetAttribute");
    return count;
}

// Not by the device: older PTX runs on newer ones, too, without their instructions.
bool tensor_cores(const Stream&) {
    cudaFuncAttributes attributes{};
    check(cudaFuncGetAttributes(&attributes, any_kernel()), "cudaFuncGetAttributes");
    return tensor_cores_allowed && attributes.ptxVersion >= 80;
}

#endif

}  // namespace hessext::cuda
