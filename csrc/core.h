// The interface of the core: the arguments of its operations, and the operations of both devices. It has raw pointers
// and int64 sizes, no Python and no torch.
//
// Every part of the Hessian is H = sum_n Q_n (x) phi_n psi_n^T, entry (i, a; j, b) = sum_n Q_n[i, j] phi_n[a] psi_n[b].
// All normalization (1/N, class weights) is inside Q_n.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <tuple>

#if defined(__CUDACC__)
#define HESSEXT_HOST_DEVICE __host__ __device__
#else
#define HESSEXT_HOST_DEVICE
#endif

// Inside a struct: lists its fields, which Python passes by name.
#define HESSEXT_FIELDS(...)                            \
    static constexpr const char* names = #__VA_ARGS__; \
    auto fields() { return std::tie(__VA_ARGS__); }

// After the definition of an operation: instantiates it for both element types.
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
    HESSEXT_FIELDS(data, ld, cols, ones)

    HESSEXT_HOST_DEVICE i64 size() const { return cols + (ones ? 1 : 0); }
};

enum class Kind {
    output,  // Q_n = B_n                                     features a, a       equations (5), (9), (15)
    hidden,  // Q_n = D V^T B_n V D + diag(bend_n)            features x, x       equations (8), (14)
    cross,   // Q_n = D V^T B_n                               features x, a       equations (11), (18)
    given,   // Q_n = entries                                 any features
};

// Q_n, and the tensors of its closed forms. The curvature at the outputs is B_n = c_n (diag p_n - p_n p_n^T), or c_n I
// if probs is null. D = diag act'(z_n).
template <class T>
struct Curvature {
    Kind kind;
    i64 rows, cols;     // of Q_n; with V, rows = m hidden units
    bool symmetric;     // whether Q_n is; pairs i <= j then stand for both
    i64 classes;        // C
    bool gauss_newton;  // whether the Gauss-Newton term is included
    const T* scale;     // c_n                                   [N]
    const T* probs;     // p_n                                   [N, C] or null
    const i64* top;     // argmax_c p_n[c]                       [N]    or null
    const T* rest;      // 1 - p_n[top], as a sum of the others  [N]    or null
    const T* weight;    // output weight V                       [C, m] or null
    const T* gram;      // V^T V, where probs is null            [m, m] or null
    const T* shift;     // sum_c p_n[c] (V[c] - V[top])          [N, m] or null
    const T* slope;     // act'(z_n)                             [N, m] or null
    const T* bend;      // act''(z_n) (V^T r_n), residual term   [N, m] or null
    // d loss / d z_n of the second of two neighbouring layers, whose residual term adds residual_n[j] D phi_n e_i^T
    const T* residual;  //                                       [N, cols] or null
    // Q_n[i, j] of the listed pairs, or of all pairs of Q_n in the order of `Grid` (assembly.h)  [P, N] or null
    const T* entries;
    HESSEXT_FIELDS(kind, rows, cols, symmetric, classes, gauss_newton, scale, probs, top, rest, weight, gram, shift,
                   slope, bend, residual, entries)
};

// The rows (or columns) of a layer's parameters in a dense matrix. Parameter a of block i is row
// start + i * step + a * inner. The bias, if there is one, is row start_bias + i * step_bias.
struct Axis {
    i64 start, step, start_bias, step_bias;
    i64 cols;  // stored features; the bias is feature number cols
    i64 inner = 1;
    HESSEXT_FIELDS(start, step, start_bias, step_bias, cols)

    HESSEXT_HOST_DEVICE i64 first(i64 a) const { return a < cols ? start + a * inner : start_bias; }
    HESSEXT_HOST_DEVICE i64 stride(i64 a) const { return a < cols ? step : step_bias; }
    HESSEXT_HOST_DEVICE i64 at(i64 i, i64 a) const { return first(a) + i * stride(a); }
};

template <class T>
struct Dense {
    T* out;
    i64 ld;
    Axis rows, cols;
    bool direct;  // write out[row * ld + col]
    bool mirror;  // write out[col * ld + row]; needed if Q_n is symmetric and left = right
    HESSEXT_FIELDS(out, ld, rows, cols, direct, mirror)
};

// One assembly. Exactly one of dense.out, blocks, norms is set.
template <class T>
struct Assembly {
    i64 samples;         // N
    Features<T> left;    // s features
    Features<T> right;   // t features
    bool same_features;  // left and right are the same features of one layer
    Curvature<T> curvature;
    const i64* pairs;  // block pairs (i, j) [P, 2], i <= j for dense with a symmetric Q_n; null: all (dense only)
    i64 pair_count;    // P
    Dense<T> dense;    // only the entries of listed pairs are written
    T* blocks;         // [P, s, t], or [P, t, s] if transposed
    bool transposed;
    double* norms;  // squared Frobenius norms [P]
    HESSEXT_FIELDS(samples, left, right, same_features, curvature, pairs, pair_count, dense, blocks, transposed, norms)
};

// Sums over pairs of samples (n, n'): ||sum_n q_n phi_n phi_n^T||_F^2 = sum W[n, n'] q_n q_n' with the weights
// W[n, n'] = (phi_n . phi_n')^2, times c_n c_n' if q does not include the scales.
template <class T>
struct Gram {
    i64 depth, rows, cols;
    const T* left;  // [depth, rows], row stride left_ld
    i64 left_ld;
    const T* right;  // [depth, cols], row stride right_ld
    i64 right_ld;
    const T* weight;   // W [rows, cols]; null: no sums
    bool triangle;     // left = right, W symmetric: n < n' are counted twice, n > n' left out
    double* products;  // [rows, cols], its upper triangle with `triangle`; or null
    double* on;        // the summands of sums[0] without W are added here [rows, cols], the upper triangle with
    double* off;       // `triangle`, and those of sums[1], if there is one, here; or null
    // With products, left and right are divided by these powers of two, so that small probabilities do not underflow.
    const double* left_power;   // [rows]
    const double* right_power;  // [cols]
    // Small terms may be rounded to TF32, and their parts of sums[0] and sums[1] are added here [2]; see gram.cu. This
    // applies to the sums of a softmax, without on and off. Null: no term is rounded.
    double* rounded;
    HESSEXT_FIELDS(depth, rows, cols, left, left_ld, right, right_ld, weight, triangle, products, on, off, left_power,
                   right_power, rounded)
};

// The most probable class of each sample n of one side: p = p_n[top], rest = 1 - p. at_other has the probabilities of
// this class at the samples n' of the other side, divided by the powers of these.
template <class T>
struct Tops {
    const i64* top;      // [n]
    const double* p;     // [n]
    const double* rest;  // [n]
    const T* at_other;   // [n, n'], 0 where the tops are equal
    HESSEXT_FIELDS(top, p, rest, at_other)
};

// One factor of an ordinary product, item by item: (item, k) is data[item * item_step + k * depth_step], where one of
// the steps is 1.
template <class T>
struct Factor {
    const T* data;
    i64 items, item_step, depth_step;
    HESSEXT_FIELDS(data, items, item_step, depth_step)
};

// Who computes: threads of the CPU,
struct Threads {
    int count;
};

// or a stream of a GPU. All pointers are then to its memory, and work is queued on the stream and not waited for.
struct Stream {
    int device;
    void* handle;  // cudaStream_t
    // Memory of the device for what a call queues, which asks at most once: `assemble` for at most 512 MiB and V, but
    // for single pairs of very many samples.
    std::function<void*(i64 bytes)> workspace;
};

#define HESSEXT_BODY  // of the operations: none but in cuda/stub.cpp

namespace cpu {

using By = Threads;
#include "operations.h"

// Here alone, for CPUs whose BLAS is slower: out[i, j] = sum_k left(i, k) right(j, k), out [left.items, ld]. In T
// within a span of k, in float64 across them.
template <class T>
void product(const Factor<T>& left, const Factor<T>& right, i64 depth, T* out, i64 ld, const By& by);

// Sets the function that long calls ask about every 50 ms, in the calling thread, whether to stop (in Python: whether a
// signal has come). They then throw Interrupted, and their results are undefined. Null: they never ask. Process-wide.
struct Interrupted {};
void set_interrupted(bool (*asked)());

// Asks for huge pages under fresh memory that is about to be written, if the system has them, for fewer page faults.
void advise_huge_pages(void* data, i64 bytes);

// The instruction sets that are built in and usable here, best first; the one in use; choosing one, for tests.
// Process-wide.
const char* const* isas(int* count);
const char* isa();
bool set_isa(const char* name);

}  // namespace cpu

namespace cuda {

using By = Stream;
#include "operations.h"

// On a GPU alone: class-major logits out[c, n] = weight_c . features_n + bias_c on tensor cores, row stride ld. Logits
// of many classes are formed in tiles and more than once, and torch's float32 product does not use tensor cores.
void logits(const Features<float>& weight, const float* bias, const Features<float>& features, i64 classes, i64 samples,
            float* out, i64 ld, const Stream& stream);

bool built();  // whether this build has CUDA kernels
// For tests, process-wide: products without tensor cores, and work in small pieces (0: as usual; see Limits).
void set_tensor_cores(bool allowed);
void set_limits(i64 span, i64 workspace, i64 blocks);
// Whether products of a type of so many bytes run on tensor cores.
bool tensor_cores(const Stream& stream, std::size_t bytes);

}  // namespace cuda

#undef HESSEXT_BODY

}  // namespace hessext
