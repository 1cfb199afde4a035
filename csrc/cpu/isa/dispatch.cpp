// Chooses the instruction set at load; HESSEXT_HAVE_V3/V4 say which were built.
#include <atomic>
#include <cstring>

#include "kernels.h"

namespace hessext::cpu {

const Kernels<float>& float_baseline();
const Kernels<double>& double_baseline();
#ifdef HESSEXT_HAVE_V3
const Kernels<float>& float_v3();
const Kernels<double>& double_v3();
#endif
#ifdef HESSEXT_HAVE_V4
const Kernels<float>& float_v4();
const Kernels<double>& double_v4();
#endif

namespace {

struct Entry {
    const char* name;
    const Kernels<float>* f32;
    const Kernels<double>* f64;
};

struct Available {
    Entry entries[3];
    const char* names[3];
    int count = 0;

    void add(const char* name, const Kernels<float>& f32, const Kernels<double>& f64) {
        entries[count] = {name, &f32, &f64};
        names[count++] = name;
    }
    Available() {
#if defined(__x86_64__)
        __builtin_cpu_init();
#ifdef HESSEXT_HAVE_V4
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
            __builtin_cpu_supports("avx512vl"))
            add("v4", float_v4(), double_v4());
#endif
#ifdef HESSEXT_HAVE_V3
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
            __builtin_cpu_supports("bmi2"))
            add("v3", float_v3(), double_v3());
#endif
#endif
        add("baseline", float_baseline(), double_baseline());
    }
};

const Available& available() {
    static const Available found;
    return found;
}

std::atomic<int> chosen{0};

}  // namespace

const char* const* isas(int* count) {
    *count = available().count;
    return available().names;
}

const char* isa() { return available().names[chosen.load()]; }

bool set_isa(const char* name) {
    for (int k = 0; k < available().count; ++k)
        if (!std::strcmp(available().names[k], name)) {
            chosen.store(k);
            return true;
        }
    return false;
}

template <>
const Kernels<float>& kernels<float>() {
    return *available().entries[chosen.load()].f32;
}
template <>
const Kernels<double>& kernels<double>() {
    return *available().entries[chosen.load()].f64;
}

}  // namespace hessext::cpu
