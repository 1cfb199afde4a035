// Logits of many classes: a product of rows, weight_c . features_n, on tensor cores.
#include "mainloop.h"

namespace hessext::cuda {
namespace {

// Both sides of a tile: rows of the weight, rows of features. A thread loads four neighbours of a row at a time.
template <class S>
class Rows {
    struct alignas(16) Four {
        float value[4];
    };
    static constexpr int quads = S::depth / 4, each = S::side * quads / S::threads;

    const float *left_, *right_;  // of this thread's row and neighbours
    const i64 left_ld_, right_ld_;
    const int left_count_, right_count_, depth_;
    const bool aligned_;
    int from_ = 0;
    Four values_[2][each];

    static __device__ __forceinline__ int row(int i) { return int(threadIdx.x) / quads + i * (S::threads / quads); }
    static __device__ __forceinline__ int col() { return int(threadIdx.x) % quads * 4; }
    static __device__ __forceinline__ bool aligned(const Features<float>& f) {
        return reinterpret_cast<std::uintptr_t>(f.data) % sizeof(Four) == 0 && f.ld % 4 == 0;
    }

    __device__ __forceinline__ Four load(const float* from, bool inside) const {
        Four four{};
        if (!inside) return four;
        if (aligned_ && from_ + col() + 4 <= depth_) return *reinterpret_cast<const Four*>(from);
#pragma unroll
        for (int e = 0; e < 4; ++e)
            if (from_ + col() + e < depth_) four.value[e] = from[e];
        return four;
    }

  public:
    __device__ __forceinline__ Rows(const Features<float>& left, const Features<float>& right, i64 rows, i64 cols,
                                    i64 row0, i64 col0)
        : left_(left.data + (row0 + row(0)) * left.ld + col()),
          right_(right.data + (col0 + row(0)) * right.ld + col()),
          left_ld_(left.ld),
          right_ld_(right.ld),
          left_count_(int(least<i64>(rows - row0, S::side))),
          right_count_(int(least<i64>(cols - col0, S::side))),
          depth_(int(left.cols)),
          aligned_(aligned(left) && aligned(right)) {}

    __device__ __forceinline__ void prepare(int stage) { from_ = stage * S::depth; }
    __device__ __forceinline__ void fetch() {
#pragma unroll
        for (int i = 0; i < each; ++i) {
            const i64 down = i * (S::threads / quads);
            values_[0][i] = load(left_ + down * left_ld_ + from_, row(i) < left_count_);
            values_[1][i] = load(right_ + down * right_ld_ + from_, row(i) < right_count_);
        }
    }
    __device__ __forceinline__ void store(typename S::Stage& stage) const {
#pragma unroll
        for (int i = 0; i < each; ++i) {
            *reinterpret_cast<Four*>(&stage.left[row(i)][col()]) = values_[0][i];
            *reinterpret_cast<Four*>(&stage.right[row(i)][col()]) = values_[1][i];
        }
    }
};

// One block per tile of classes and samples.
template <class S>
__global__ void __launch_bounds__(S::threads, least_blocks<S>)
    logit_tiles(Features<float> weight, const float* bias, Features<float> features, Grid tiles, i64 classes,
                i64 samples, float* out, i64 ld) {
    TileMemory<float, S>& memory = shared<TileMemory<float, S>>();
    const Pair place = tiles.at(blockIdx.x);
    const i64 row0 = place.first * S::side, col0 = place.second * S::side;
    Sums<float, S> sums;
    Rows<S> rows(weight, features, classes, samples, row0, col0);
    mainloop(rows, int(weight.cols + S::depth - 1) / S::depth, memory.stages,
             [&](const typename S::Stage& stage) { sums.template add<true>(stage); });
    sums.template each_coalesced<false>(memory.staging, [&](float v, int r, int c) {
        const i64 j = row0 + r, n = col0 + c;
        if (j < classes && n < samples) out[j * ld + n] = bias ? v + bias[j] : v;
    });
}

}  // namespace

void logits(const Features<float>& weight, const float* bias, const Features<float>& features, i64 classes, i64 samples,
            float* out, i64 ld, const Stream& stream) {
    using S = RowShape<float, 128, 2, 4>;
    static_assert(sizeof(TileMemory<float, S>) <= most_shared);
    use_device(stream);
    const Grid tiles{ceil_div(classes, S::side), ceil_div(samples, S::side), false};
    launch<logit_tiles<S>>(tiles.count(), S::threads, sizeof(TileMemory<float, S>), stream, weight, bias, features,
                           tiles, classes, samples, out, ld);
}

}  // namespace hessext::cuda
