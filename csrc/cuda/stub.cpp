// Stands in for the CUDA kernels where they are not built, so that callers need no #ifdef.
#include <stdexcept>

#include "../core.h"

namespace hessext::cuda {

bool built() { return false; }
void set_tensor_cores(bool) {}
void set_limits(i64, i64, i64) {}

#define HESSEXT_MISSING(result, name, ...)                                             \
    template <class T>                                                                 \
    result name(__VA_ARGS__) {                                                         \
        throw std::runtime_error(#name ": this build of hessext has no CUDA kernels"); \
    }
HESSEXT_MISSING(void, assemble, const Assembly<T>&, const Stream&)
HESSEXT_MISSING(void, softmax_top, const T*, i64, i64, i64*, T*, const Stream&)
HESSEXT_MISSING(void, label_residual, const T*, const T*, const i64*, const i64*, const T*, i64, i64, T*, const Stream&)
HESSEXT_MISSING(void, softmax_shift, const T*, const i64*, const T*, i64, i64, i64, T*, const Stream&)
HESSEXT_MISSING(void, softmax_product, const T*, const T*, const i64*, const T*, i64, i64, T*, const Stream&)
HESSEXT_MISSING(void, softmax_scan, const T*, i64, i64, i64, T*, i64*, double*, const Stream&)
HESSEXT_MISSING(void, softmax_others, T*, i64, i64, i64, const T*, const i64*, const double*, const double*,
                const Stream&)
HESSEXT_MISSING(void, curvature_entries, Part, const Curvature<T>&, const i64*, i64, T*, const Stream&)
HESSEXT_MISSING(void, gram_sums, const Gram<T>&, double*, const Stream&)
HESSEXT_MISSING(void, gram_tops, const Gram<T>&, const Tops<T>&, const Tops<T>&, double*, const Stream&)

#define HESSEXT_INSTANTIATE(T)                                                                               \
    template void assemble<T>(const Assembly<T>&, const Stream&);                                            \
    template void softmax_top<T>(const T*, i64, i64, i64*, T*, const Stream&);                               \
    template void label_residual<T>(const T*, const T*, const i64*, const i64*, const T*, i64, i64, T*,      \
                                    const Stream&);                                                          \
    template void softmax_shift<T>(const T*, const i64*, const T*, i64, i64, i64, T*, const Stream&);        \
    template void softmax_product<T>(const T*, const T*, const i64*, const T*, i64, i64, T*, const Stream&); \
    template void softmax_scan<T>(const T*, i64, i64, i64, T*, i64*, double*, const Stream&);                \
    template void softmax_others<T>(T*, i64, i64, i64, const T*, const i64*, const double*, const double*,   \
                                    const Stream&);                                                          \
    template void curvature_entries<T>(Part, const Curvature<T>&, const i64*, i64, T*, const Stream&);       \
    template void gram_sums<T>(const Gram<T>&, double*, const Stream&);                                      \
    template void gram_tops<T>(const Gram<T>&, const Tops<T>&, const Tops<T>&, double*, const Stream&);
HESSEXT_INSTANTIATE(float)
HESSEXT_INSTANTIATE(double)

}  // namespace hessext::cuda
