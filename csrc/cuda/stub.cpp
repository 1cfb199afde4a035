// Stands in for the CUDA kernels where they are not built, so that callers need no #ifdef.
#include <stdexcept>
#include <string>

#include "../core.h"

namespace hessext::cuda {

[[noreturn]] static void missing(const char* operation) {
    throw std::runtime_error(std::string(operation) + ": this build of hessext has no CUDA kernels");
}

#pragma GCC diagnostic ignored "-Wunused-parameter"
#define HESSEXT_BODY       \
    {                      \
        missing(__func__); \
    }
#include "../operations.h"

HESSEXT_OPERATIONS(HESSEXT_INSTANTIATE)

void logits(const Features<float>&, const float*, const Features<float>&, i64, i64, float*, i64, const Stream&) {
    missing(__func__);
}
bool built() { return false; }
void set_tensor_cores(bool) {}
void set_limits(i64, i64, i64) {}
bool tensor_cores(const Stream&, std::size_t) { return false; }

}  // namespace hessext::cuda
