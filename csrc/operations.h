// The operations of the core, each declared once. core.h includes this file in `namespace cpu`, where By is a number of
// threads, and in `namespace cuda`, where it is a stream. HESSEXT_BODY is empty there; cuda/stub.cpp, for builds
// without CUDA, includes the file with a body that throws. Operations on a CPU throw std::bad_alloc, and those on a GPU
// throw std::runtime_error if a launch fails.

// Assembles blocks, a dense matrix or squared norms. float32 products are summed in float32 within spans of samples
// (9216 on a CPU, at most 8192 on a GPU) and in float64 across them. On a CPU the workspace is 24 MiB for a batch of
// pairs, and tiles of less than 4 MiB per thread.
template <class T>
void assemble(const Assembly<T>& request, const By& by) HESSEXT_BODY;

// out[p, n] = Q_n[i_p, j_p] of the listed pairs, without the residual between layers                        [P, N]
template <class T>
void curvature_entries(const Curvature<T>& curvature, const i64* pairs, i64 pair_count, i64 samples, T* out,
                       const By& by) HESSEXT_BODY;

// In place: p_n = softmax(logits_n); top[n] = argmax_c p_n[c] (the first of equals), rest[n] = 1 - p_n[top] as the sum
// of the other probabilities.                                                                 logits [N, C], out [N]
template <class T>
void softmax(T* logits, i64 samples, i64 classes, i64* top, T* rest, const By& by) HESSEXT_BODY;

// out[n, c] = scale_n (p_n[c] - [c == label_n]), with p - 1 = -rest where the label is the top class.      [N, C]
template <class T>
void label_residual(const T* probs, const T* scale, const i64* label, const i64* top, const T* rest, i64 samples,
                    i64 classes, T* out, const By& by) HESSEXT_BODY;

// out_n = c_n (diag p_n - p_n p_n^T) v_n, without cancellation where one class dominates; out may be v.    [N, C]
template <class T>
void softmax_product(const T* probs, const T* scale, const i64* top, const T* v, i64 samples, i64 classes, T* out,
                     const By& by) HESSEXT_BODY;

// shift[n, i] = sum_c p_n[c] (V[c, i] - V[top_n, i]), without cancellation where one class dominates.   [N, m]
template <class T>
void softmax_shift(const T* probs, const i64* top, const T* weight, i64 samples, i64 classes, i64 units, T* shift,
                   const By& by) HESSEXT_BODY;

// Class-major logits [classes, samples], class `first` in row 0: merges these classes into the largest logit of each
// sample, its class, and the sum of e^(l - largest) over all other classes. The first call has first = 0.
//                                                                                                       state [samples]
template <class T>
void softmax_scan(const T* logits, i64 classes, i64 samples, i64 first, T* largest, i64* top, double* others,
                  const By& by) HESSEXT_BODY;

// In place: probabilities e^(l - largest) / (1 + others) / power_n, and 0 at each sample's top class. power_n is a
// power of two.                                                                                         power [samples]
template <class T>
void softmax_others(T* logits, i64 classes, i64 samples, i64 first, const T* largest, const i64* top,
                    const double* others, const double* power, const By& by) HESSEXT_BODY;

// sums[0] += sum W left^T right; or, with products (left and right are probabilities p <= 1/2, class-major):
// products += p p'^T, sums[0] += sum W s s'^T with s = p (1 - p), sums[1] += sum W q q'^T with q = p^2. Added to on and
// off are left^T right, or s s'^T and -q q'^T. Sums are in T within a span of rows of left and right, and in float64
// across spans.
template <class T>
void gram_sums(const Gram<T>& request, double* sums, const By& by) HESSEXT_BODY;

// The terms of the top classes in the sums sum W sum_j s_nj s_n'j (added to sums[0]) and
// sum W sum_{j != k} p_nj p_n'j p_nk p_n'k (added to sums[1]). The terms of the other classes are the first sum of
// gram_sums, and minus its second; `products` are those that it has added up. The same terms without W are added to on
// and off.
template <class T>
void gram_tops(const Gram<T>& request, const Tops<T>& left, const Tops<T>& right, double* sums,
               const By& by) HESSEXT_BODY;

#define HESSEXT_OPERATIONS(each)                                                                    \
    each(assemble) each(curvature_entries) each(softmax) each(label_residual) each(softmax_product) \
        each(softmax_shift) each(softmax_scan) each(softmax_others) each(gram_sums) each(gram_tops)
