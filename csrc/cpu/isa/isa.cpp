// Inner loops in GCC/Clang vector extensions. Compiled once per instruction set (HESSEXT_ISA names it), so everything
// is internal to the file and no standard library template is used: an inline function compiled for AVX-512 must
// never be the copy that the linker keeps.
#include "class_sums.h"
#include "kernels.h"
#include "multiply.h"
#include "packing.h"
#include "softmax.h"

#ifndef HESSEXT_ISA
#define HESSEXT_ISA baseline
#endif

namespace hessext::cpu {
namespace {

template <class T>
constexpr Kernels<T> table = {panel_rows,
                              panel_cols<T>,
                              lanes<T>,
                              multiply<T>,
                              pack<T>,
                              pack_across<T>,
                              pack_products<T>,
                              pack_cross<T>,
                              softmax_diagonal<T>,
                              covariance<T>,
                              covariance_scratch<T>,
                              softmax<T>,
                              shift<T>,
                              softmax_scan<T>,
                              softmax_row<T>,
                              softmax_split<T>};

}  // namespace

#define HESSEXT_JOIN_(a, b) a##b
#define HESSEXT_JOIN(a, b) HESSEXT_JOIN_(a, b)
const Kernels<float>& HESSEXT_JOIN(float_, HESSEXT_ISA)() { return table<float>; }
const Kernels<double>& HESSEXT_JOIN(double_, HESSEXT_ISA)() { return table<double>; }

}  // namespace hessext::cpu
