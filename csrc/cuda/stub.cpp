// Stands in for the CUDA kernels where they are not built, so that callers need no #ifdef.
#include <stdexcept>

#include "../core.h"

namespace hessext::cuda {

bool built() { return false; }
void set_tensor_cores(bool) {}
void set_limits(i64, i64, i64) {}
bool tensor_cores(const Stream&, std::size_t) { return false; }
void logits(const Features<float>&, const float*, const Features<float>&, i64, i64, float*, const Stream&) {
    throw std::runtime_error("logits: this build of hessext has no CUDA kernels");
}

#define HESSEXT_MISSING(name, ...)                                                     \
    template <class T>                                                                 \
    void name(__VA_ARGS__, const Stream&) {                                            \
        throw std::runtime_error(#name ": this build of hessext has no CUDA kernels"); \
    }                                                                                  \
    HESSEXT_INSTANTIATE(name)
HESSEXT_MISSING(assemble, const Assembly<T>&)
HESSEXT_MISSING(softmax, T*, i64, i64, i64*, T*)
HESSEXT_MISSING(label_residual, const T*, const T*, const i64*, const i64*, const T*, i64, i64, T*)
HESSEXT_MISSING(softmax_product, const T*, const T*, const i64*, const T*, i64, i64, T*)
HESSEXT_MISSING(softmax_shift, const T*, const i64*, const T*, i64, i64, i64, T*)
HESSEXT_MISSING(softmax_scan, const T*, i64, i64, i64, T*, i64*, double*)
HESSEXT_MISSING(softmax_others, T*, i64, i64, i64, const T*, const i64*, const double*, const double*)
HESSEXT_MISSING(curvature_entries, Part, const Curvature<T>&, const i64*, i64, T*)
HESSEXT_MISSING(gram_sums, const Gram<T>&, double*)
HESSEXT_MISSING(gram_tops, const Gram<T>&, const Tops<T>&, const Tops<T>&, double*)

}  // namespace hessext::cuda
