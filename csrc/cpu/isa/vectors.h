// Vectors of the instruction set that this file is compiled for.
#pragma once

#include "kernels.h"

namespace hessext::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64, panel_rows = 14;
#elif defined(__AVX2__)
constexpr int vector_bytes = 32, panel_rows = 6;
#elif defined(__aarch64__)
constexpr int vector_bytes = 16, panel_rows = 14;
#else
constexpr int vector_bytes = 16, panel_rows = 6;
#endif

template <class T>
constexpr i64 lanes = vector_bytes / sizeof(T);
template <class T>
constexpr i64 panel_cols = 2 * lanes<T>;

static_assert(most_products % panel_rows == 0 && most_products >= panel_cols<float>);
static_assert(tile_rows % panel_rows == 0 && tile_cols % panel_cols<float> == 0 && tile_cols % panel_cols<double> == 0);

template <class T, i64 n = lanes<T>>
using Vector __attribute__((vector_size(n * sizeof(T)), aligned(sizeof(T)), may_alias)) = T;

template <class V, class T>
inline V load_as(const T* p) {
    return *reinterpret_cast<const V*>(p);
}
template <class T>
inline Vector<T> load(const T* p) {
    return load_as<Vector<T>>(p);
}
template <class T, class V>
inline void store(T* p, V v) {
    *reinterpret_cast<V*>(p) = v;
}

}  // namespace
}  // namespace hessext::cpu
