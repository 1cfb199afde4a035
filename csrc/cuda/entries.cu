// Single entries of Q_n, of any kind.
#include "weights.h"

namespace hessext::cuda {

template <class T>
void curvature_entries(const Curvature<T>& curvature, const i64* pairs, i64 pair_count, i64 samples, T* out,
                       const Stream& stream) {
    use_device(stream);
    Assembly<T> request{};
    request.samples = samples;
    request.curvature = curvature;
    request.pairs = pairs;
    request.pair_count = pair_count;
    const Outline<T> outline(request, Outer::blocks);
    const bool covariance = curvature.kind == Kind::hidden && curvature.probs && curvature.gauss_newton;
    if (covariance)
        launch<covariances<T>>(ceil_div(pair_count * samples, covariance_threads), covariance_threads, 0, stream,
                               outline, 0, pair_count, out);
    launch<weigh_pairs<T>>(ceil_div(pair_count * samples, weight_threads), weight_threads, 0, stream, outline, 0,
                           pair_count, covariance ? out : nullptr, out);
}

HESSEXT_INSTANTIATE(curvature_entries)

}  // namespace hessext::cuda
