// What the GPU is, and what tests change of how it is used.
#include <atomic>
#include <mutex>
#include <set>

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

// This thread may do meanwhile what would break another stream's capture if it waited for the device: loading does not.
class Uncaptured {
    cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;

  public:
    Uncaptured() { check(cudaThreadExchangeStreamCaptureMode(&mode_), "cudaThreadExchangeStreamCaptureMode"); }
    ~Uncaptured() { cudaThreadExchangeStreamCaptureMode(&mode_); }
};

// What a kernel was compiled for; loads it on the current device.
cudaFuncAttributes attributes_of(const void* kernel) {
    cudaFuncAttributes attributes{};
    check(cudaFuncGetAttributes(&attributes, kernel), "cudaFuncGetAttributes");
    return attributes;
}

void load_kernels(int device) {
    static std::mutex mutex;
    static std::set<int> loaded;
    const std::lock_guard<std::mutex> lock(mutex);
    if (loaded.count(device)) return;
    const Uncaptured uncaptured;
    for (const void* kernel : kernels()) {
        attributes_of(kernel);
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(most_shared)),
              "cudaFuncSetAttribute");
    }
    loaded.insert(device);
}

std::string version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }

}  // namespace

std::vector<const void*>& kernels() {
    static std::vector<const void*> all;
    return all;
}

std::string driver_hint() {
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    const std::string found = driver ? "the driver is one for CUDA " + version(driver) : "no driver was found";
    return "; " + found + ", and this build needs one for CUDA " + version(runtime) + ", on Linux " +
           (runtime >= 13000 ? "580" : "525") + " or later";
}

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
    load_kernels(stream.device);
}

int multiprocessors(const Stream& stream) { return attribute(stream, cudaDevAttrMultiProcessorCount); }

// Not by the device alone: older PTX runs on newer ones, too, without their instructions. For float32 three TF32
// products must cost less than one of float32: TF32 has 8 times its rate on sm_80 and 90, but once to twice on sm_86,
// 89 and 120.
bool tensor_cores(const Stream& stream, std::size_t bytes) {
    use_device(stream);
    if (!tensor_cores_allowed || attributes_of(kernels().front()).ptxVersion < 80) return false;
    if (bytes == sizeof(double)) return true;
    const int major = attribute(stream, cudaDevAttrComputeCapabilityMajor);
    const int minor = attribute(stream, cudaDevAttrComputeCapabilityMinor);
    return (major == 8 && minor == 0) || major == 9 || major == 10;
}

}  // namespace hessext::cuda
