// Stands in for the CPU's kernels in the host code that tests/ptx compiles.
#include <stdexcept>

#include "core.h"

namespace hessext::cpu {

#pragma GCC diagnostic ignored "-Wunused-parameter"
#define HESSEXT_BODY                                     \
    {                                                    \
        throw std::logic_error("not the CPU's kernels"); \
    }
#include "operations.h"

HESSEXT_OPERATIONS(HESSEXT_INSTANTIATE)

template <class T>
void product(const Factor<T>&, const Factor<T>&, i64, T*, i64, const By&) {
    throw std::logic_error("not the CPU's kernels");
}
HESSEXT_INSTANTIATE(product)

void advise_huge_pages(void*, i64) {}
void set_interrupted(bool (*)()) {}
const char* const* isas(int* count) { return *count = 0, nullptr; }
const char* isa() { return ""; }
bool set_isa(const char*) { return false; }

}  // namespace hessext::cpu
