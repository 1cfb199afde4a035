// Stages of classes whose probabilities are all small, and lists of stages.
#pragma once

#include "launch.h"

namespace hessext::cuda {

// Stages of 16 classes whose probabilities are all at most `most` on both sides of a tile, and not NaN. There q q' and
// the difference of s s' from p p' are small beside p p', so that one product of rounded numbers is enough for them.
struct SmallStages {
    static constexpr int classes = 16, samples = 64;
    static constexpr float most = 1.f / 2048;

    static constexpr int bits = 32;

    const unsigned *left, *right;  // a bit for each stage, 1: small [tile rows, words], [tile columns, words]; or null
    i64 words;

    // The bits of 32 stages.
    __device__ __forceinline__ unsigned at(const Pair& place, i64 word) const {
        return left ? left[place.first * words + word] & right[place.second * words + word] : 0;
    }
};

// The stages of a span that are small, or those that are not, in ascending order.
struct StageList {
    static constexpr int most = 1024;
    int count;
    unsigned small[most / SmallStages::bits + 1];
    int stage[most];

    // Makes the list, by the block's first warp. Returns its length.
    __device__ __forceinline__ int fill(const SmallStages& all, const Pair& place, i64 first, int stages, bool wanted) {
        constexpr int bits = SmallStages::bits;
        const int offset = int(first % bits);
        __syncthreads();  // an earlier list may still be read
        if (threadIdx.x < warp_size) {
#pragma unroll 1
            for (int w = int(threadIdx.x); w * bits < offset + stages; w += warp_size)
                small[w] = all.at(place, first / bits + w);
            __syncwarp();
            int found = 0;
#pragma unroll 1
            for (int from = 0; from < stages; from += warp_size) {
                const int at = from + int(threadIdx.x), bit = offset + at;
                const bool mine = at < stages && ((small[bit / bits] >> bit % bits & 1) != 0) == wanted;
                const unsigned these = __ballot_sync(all_lanes, mine);
                if (mine) stage[found + __popc(these & ((1u << threadIdx.x) - 1))] = at;
                found += __popc(these);
            }
            if (threadIdx.x == 0) count = found;
        }
        __syncthreads();
        return count;
    }
};

}  // namespace hessext::cuda
