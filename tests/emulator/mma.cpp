// The matrix instruction as tensor cores compute it.
#include "cuda_runtime.h"

namespace hessext::emulator {
namespace {

float as_read(float v) { return __uint_as_float(__float_as_uint(v) & 0xFFFFE000u); }  // TF32: without 13 bits
double as_read(double v) { return v; }

template <class T>
void multiply(T sum[4], const T left[4], const T right[2]) {
    T mine[6];
    for (int e = 0; e < 4; ++e) mine[e] = as_read(left[e]);
    for (int e = 0; e < 2; ++e) mine[4 + e] = as_read(right[e]);
    const unsigned char* all = warp_exchange(mine, sizeof mine);
    const int g = int(lane()) / 4, t = int(lane()) % 4;
    const auto at = [&](int l, int e) { return reinterpret_cast<const T*>(all + std::size_t(l) * stride)[e]; };
    for (int e = 0; e < 4; ++e)
        for (int k = 0; k < 8; ++k)
            sum[e] += at(4 * g + k % 4, e / 2 + k / 4 * 2) * at(4 * (2 * t + e % 2) + k % 4, 4 + k / 4);
}

}  // namespace

void multiply_16x8x8(float sum[4], const float left[4], const float right[2]) { multiply(sum, left, right); }
void multiply_16x8x8(double sum[4], const double left[4], const double right[2]) { multiply(sum, left, right); }

}  // namespace hessext::emulator
