// The memory of one assembly, and the parameters of its kernels.
#pragma once

#include "plan.h"

namespace hessext::cuda {

// Consecutive arrays in one piece of memory, each aligned.
class Arena {
    unsigned char* begin_;
    i64 used_ = 0;

  public:
    explicit Arena(void* memory) : begin_(static_cast<unsigned char*>(memory)) {}
    template <class U>
    U* take(i64 count) {  // null where the count is 0
        U* array = reinterpret_cast<U*>(begin_ + used_);
        used_ += ceil_div(count * i64(sizeof(U)), 256) * 256;
        return count ? array : nullptr;
    }
    i64 used() const { return used_; }
};

// The samples of nonzero weight of each outer pair of a batch, in order. Arrays are [pairs, N], with entry k of pair t
// at t * N + k, and null if a part does not need them.
template <class T>
struct SampleLists {
    int* index;  // sample n
    T* weight;   // w_n: multiplies left_n right_n^T
    T* extra;    // extra_n: weight of the residual (see `WeightedFeatures`, `CurvatureColumn`)
    T* at_top;   // V[top_n, i] and shift[n, i] of the pair's unit i, if a column of B_n V is the right side
    T* shift;
    i64* count;  // [pairs]
};

template <class T>
struct Workspace {
    SampleLists<T> lists;
    T* covariances;        // (V^T B_n V)[i, l] / c_n of a batch     [pairs, N]                            or null
    T* weight_columns;     // V^T                                    [m, C]                                or null
    double* tile_squares;  // squared norms of the tiles of a batch  [pairs, tiles]                        or null
    double* split_sums;    // sums of the tiles of a launch          [launch tiles, splits, side, side]    or null

    // Lays out the arrays from `memory` on, and returns the bytes used; with null it only counts.
    i64 lay_out(const Plan<T>& plan, void* memory) {
        const Outline<T>& o = plan.outline;
        const Curvature<T>& q = o.r.curvature;
        Arena arena(memory);
        const i64 entries = plan.batch * plan.samples;
        lists.index = arena.take<int>(plan.sparse ? entries : 0);
        lists.weight = arena.take<T>(entries);
        lists.extra = arena.take<T>(o.extra ? entries : 0);
        lists.at_top = arena.take<T>(plan.curvature_column ? entries : 0);
        lists.shift = arena.take<T>(plan.curvature_column ? entries : 0);
        lists.count = arena.take<i64>(plan.sparse ? plan.batch : 0);
        covariances = arena.take<T>(plan.covariance ? entries : 0);
        weight_columns = arena.take<T>(plan.curvature_column ? q.classes * q.rows : 0);
        tile_squares = arena.take<double>(o.r.norms ? plan.batch * plan.tiles.count() : 0);
        split_sums = arena.take<double>(plan.long_sums ? plan.launch_tiles * plan.splits * plan.side * plan.side : 0);
        return arena.used();
    }
};

// A tile of a batch of pairs.
struct Place {
    i64 t;  // its pair's index in the batch
    Pair pair;
    int row0, col0;  // its first entry in the pair's product
};

// The parameters of the kernels of an assembly: the plan, the memory, and the current pairs and tiles.
template <class T>
struct Params : Plan<T>, Workspace<T> {
    i64 first_pair = 0, pairs = 0;  // of the batch
    i64 first_tile = 0;             // of the launch

    explicit Params(const Plan<T>& plan) : Plan<T>(plan), Workspace<T>{} {}

    HESSEXT_HOST_DEVICE Pair pair(i64 t) const { return pair_at(this->outline, first_pair + t); }

    // Tile `at` of the launch, whose sides have `side` entries. Consecutive tiles are of consecutive pairs, not of one
    // pair: these read the same columns and, if classes fill the tile, write to the same 32 bytes.
    __device__ __forceinline__ Place place(i64 at, int side) const {
        const i64 job = first_tile + at, t = job % pairs;
        const Pair position = this->tiles.at(job / pairs);
        return {t, pair(t), int(position.first) * side, int(position.second) * side};
    }
};

}  // namespace hessext::cuda
