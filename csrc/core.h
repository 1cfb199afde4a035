// The whole core API. Raw pointers, int64 sizes, no Python and no torch; `threads` is the number of CPU threads.
//
// Every part of the Hessian is H = sum_n Q_n (x) phi_n psi_n^T, entry (i, a; j, b) = sum_n Q_n[i, j] phi_n[a] psi_n[b].
// All normalization (1/N, class weights) is inside the per-sample scale c_n.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#if defined(__CUDACC__)
#define HESSEXT_ANYWHERE __host__ __device__
#else
#define HESSEXT_ANYWHERE
#endif

// After the definition of one of the operations: both element types of it.
#define HESSEXT_INSTANTIATE(name)               \
    template decltype(name<float>) name<float>; \
    template decltype(name<double>) name<double>;

namespace hessext {

using i64 = std::int64_t;

// Features of a layer: phi_n = [data[n, 0..cols), 1 if ones]. A bias is the feature that is always 1.
template <class T>
struct Features {
    const T* data;  // [N, cols], row stride ld
    i64 ld;
    i64 cols;
    bool ones;

    HESSEXT_ANYWHERE i64 size() const { return cols + (ones ? 1 : 0); }
};

// What Q_n is made of. The output curvature is B_n = c_n (diag p_n - p_n p_n^T), or c_n I where probs is null.
template <class T>
struct Curvature {
    i64 samples;        // N
    i64 units;          // m, hidden units (0 for a linear model)
    i64 classes;        // C
    bool gauss_newton;  // include the Gauss-Newton term
    const T* scale;     // c_n                                   [N]
    const T* probs;     // p_n                                   [N, C] or null
    const i64* top;     // argmax_c p_n[c]                       [N]    or null
    const T* rest;      // 1 - p_n[top], as a sum of the others  [N]    or null
    const T* weight;    // output weight V                       [C, m] or null
    const T* gram;      // V^T V, where probs is null            [m, m] or null
    const T* shift;     // sum_c p_n[c] (V[c] - V[top])          [N, m] or null
    const T* slope;     // act'(z_n)                             [N, m] or null
    const T* bend;      // act''(z_n) (V^T r_n), residual term   [N, m] or null
    const T* residual;  // r_n = d loss / d f_n, residual term   [N, C] or null
};

enum class Part {
    hidden,  // Q_n = D V^T B V D + diag(bend)            features x, x       equations (8), (14)
    output,  // Q_n = B                                   features a, a       equations (9), (15), (5)
    cross,   // Q_n = D V^T B, plus r_n[j] D x_n e_i^T    features x, a       equations (11), (18)
};

// Where the parameters of a layer are in a dense matrix: parameter a of block i is row (or column)
// start + i * step + a * inner; the bias, if there is one, start_bias + i * step_bias.
struct Axis {
    i64 start, step, start_bias, step_bias;
    i64 cols;  // stored features; the bias is feature number cols
    i64 inner = 1;

    HESSEXT_ANYWHERE i64 first(i64 a) const { return a < cols ? start + a * inner : start_bias; }
    HESSEXT_ANYWHERE i64 stride(i64 a) const { return a < cols ? step : step_bias; }
    HESSEXT_ANYWHERE i64 at(i64 i, i64 a) const { return first(a) + i * stride(a); }
};

template <class T>
struct Dense {
    T* out;
    i64 ld;
    Axis rows, cols;
    bool direct;  // write out[row * ld + col]
    bool mirror;  // write out[col * ld + row]; a symmetric part needs both
};

// One assembly. Exactly one of dense.out, blocks, norms is set.
template <class T>
struct Assembly {
    Part part;
    Features<T> left;   // s features
    Features<T> right;  // t features
    bool symmetric;     // left and right are the same features of one layer
    Curvature<T> curvature;
    const i64* pairs;  // block pairs (i, j) [P, 2]; null: all of the grid (dense only)
    i64 pair_count;    // P
    Dense<T> dense;
    T* blocks;  // [P, s, t], or [P, t, s] if transposed
    bool transposed;
    double* norms;  // squared Frobenius norms [P]
};

// Sums over pairs of samples (n, n'): ||sum_n q_n phi_n phi_n^T||_F^2 = sum W[n, n'] q_n q_n' with the weights
// W[n, n'] = (phi_n . phi_n')^2, times c_n c_n' where the scales are not in q.
template <class T>
struct Gram {
    i64 depth, rows, cols;
    const T* left;  // [depth, rows], row stride left_ld
    i64 left_ld;
    const T* right;  // [depth, cols], row stride right_ld
    i64 right_ld;
    const T* weight;   // W [rows, cols]
    bool triangle;     // left = right, W symmetric: n < n' are counted twice, n > n' left out
    double* products;  // [rows, cols], its upper triangle with `triangle`; or null
    // With products, left and right are in these units, powers of two: small probabilities do not underflow.
    const double* left_unit;   // [rows]
    const double* right_unit;  // [cols]
};

// The most probable class of each sample n of one side: p = p_n[top], rest = 1 - p. at_other has the probabilities of
// that class at the samples n' of the other side, in the units of those.
template <class T>
struct Tops {
    const i64* top;      // [n]
    const double* p;     // [n]
    const double* rest;  // [n]
    const T* at_other;   // [n, n'], 0 where the tops are equal
};

namespace cpu {

// Assembles blocks, a dense matrix or squared norms. float32 products are summed in float32 within spans of 9216
// samples and in float64 across them. Throws std::bad_alloc where the workspace (24 MiB for the
// pairs in hand, and tiles of less than 4 MiB per thread) cannot be had.
template <class T>
void assemble(const Assembly<T>& request, int threads);

// In place: p_n = softmax(logits_n); top[n] = argmax_c p_n[c] (the first of equals), rest[n] = 1 - p_n[top] as the sum
// of the other probabilities.                                                                 logits [N, C], out [N]
template <class T>
void softmax(T* logits, i64 samples, i64 classes, i64* top, T* rest, int threads);

// out[n, c] = scale_n (p_n[c] - [c == label_n]), with p - 1 = -rest where the label is the top class.      [N, C]
template <class T>
void label_residual(const T* probs, const T* scale, const i64* label, const i64* top, const T* rest, i64 samples,
                    i64 classes, T* out, int threads);

// out_n = c_n (diag p_n - p_n p_n^T) v_n, without cancellation where one class dominates; out may be v.    [N, C]
template <class T>
void softmax_product(const T* probs, const T* scale, const i64* top, const T* v, i64 samples, i64 classes, T* out,
                     int threads);

// shift[n, i] = sum_c p_n[c] (V[c, i] - V[top_n, i]), without cancellation where one class dominates.   [N, m]
template <class T>
void softmax_shift(const T* probs, const i64* top, const T* weight, i64 samples, i64 classes, i64 units, T* shift,
                   int threads);

// out[p, n] = Q_n[i_p, j_p] of the hidden or output part for the listed pairs                           [P, N]
template <class T>
void curvature_entries(Part part, const Curvature<T>& curvature, const i64* pairs, i64 pair_count, T* out, int threads);

// Class-major logits [classes, samples], class `first` in row 0: merges these classes into the largest logit of each
// sample, its class, and the sum of e^(l - largest) over all other classes. Begin with first = 0.       state [samples]
template <class T>
void softmax_scan(const T* logits, i64 classes, i64 samples, i64 first, T* largest, i64* top, double* others,
                  int threads);

// In place: probabilities lift_n e^(l - largest) / (1 + others), and 0 at each sample's top class. lift [samples]
template <class T>
void softmax_others(T* logits, i64 classes, i64 samples, i64 first, const T* largest, const i64* top,
                    const double* others, const double* lift, int threads);

// In T within 9216 rows of left and right, in float64 across them.
// sums[0] += sum W left^T right; or, with products (left and right are probabilities p <= 1/2, class-major):
// products += p p'^T, sums[0] += sum W s s'^T with s = p (1 - p), sums[1] += sum W q q'^T with q = p^2.
template <class T>
void gram_sums(const Gram<T>& request, double* sums, int threads);

// sums[0] += sum W sum_j s_nj s_n'j and sums[1] += sum W sum_{j != k} p_nj p_n'j p_nk p_n'k, except for what gram_sums
// has added: sum over the other classes of s s', and minus that of q q'. `products` of it is the sum of p p'.
template <class T>
void gram_tops(const Gram<T>& request, const Tops<T>& left, const Tops<T>& right, double* sums, int threads);

// Long calls ask every 50 ms or so, in the calling thread, whether to give up (in Python: whether a signal has come).
// They then throw Interrupted, and what they were to write is undefined. Null: never. Process-wide.
struct Interrupted {};
void set_interrupted(bool (*asked)());

// Instruction sets built in and usable here, best first; the one in use; choosing one (for tests). Process-wide.
const char* const* isas(int* count);
const char* isa();
bool set_isa(const char* name);

}  // namespace cpu

// The same operations on a GPU, under the same names. All pointers are to its memory; work is queued on the stream and
// not waited for. Throws std::runtime_error where a launch fails.
namespace cuda {

struct Stream {
    int device;
    void* handle;  // cudaStream_t
    // Memory of the device for what a call queues, which asks at most once: `assemble` for at most 512 MiB and V, but
    // for single pairs of very many samples.
    std::function<void*(i64 bytes)> workspace;
};

bool built();  // whether this build has CUDA kernels
// For tests, process-wide: products without tensor cores, and work in small pieces (0: as usual), see cuda/device.h.
void set_tensor_cores(bool allowed);
void set_limits(i64 span, i64 workspace, i64 blocks);
// Whether products of a type of so many bytes run on tensor cores.
bool tensor_cores(const Stream& stream, std::size_t bytes);

template <class T>
void assemble(const Assembly<T>& request, const Stream& stream);
template <class T>
void softmax(T* logits, i64 samples, i64 classes, i64* top, T* rest, const Stream& stream);
template <class T>
void label_residual(const T* probs, const T* scale, const i64* label, const i64* top, const T* rest, i64 samples,
                    i64 classes, T* out, const Stream& stream);
template <class T>
void softmax_shift(const T* probs, const i64* top, const T* weight, i64 samples, i64 classes, i64 units, T* shift,
                   const Stream& stream);
template <class T>
void softmax_product(const T* probs, const T* scale, const i64* top, const T* v, i64 samples, i64 classes, T* out,
                     const Stream& stream);
template <class T>
void curvature_entries(Part part, const Curvature<T>& curvature, const i64* pairs, i64 pair_count, T* out,
                       const Stream& stream);
template <class T>
void softmax_scan(const T* logits, i64 classes, i64 samples, i64 first, T* largest, i64* top, double* others,
                  const Stream& stream);
template <class T>
void softmax_others(T* logits, i64 classes, i64 samples, i64 first, const T* largest, const i64* top,
                    const double* others, const double* lift, const Stream& stream);
// Here alone: class-major logits out[c, n] = weight_c . features_n + bias_c on tensor cores. Those of many classes are
// formed tile by tile and more than once, and torch's product in float32 does without tensor cores.
void logits(const Features<float>& weight, const float* bias, const Features<float>& features, i64 classes, i64 samples,
            float* out, const Stream& stream);
template <class T>
void gram_sums(const Gram<T>& request, double* sums, const Stream& stream);
template <class T>
void gram_tops(const Gram<T>& request, const Tops<T>& left, const Tops<T>& right, double* sums, const Stream& stream);

}  // namespace cuda
}  // namespace hessext
