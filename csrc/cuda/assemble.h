// The launches of one assembly. Workspace comes from outside; nothing waits for the GPU.
#pragma once

#include <algorithm>
#include <climits>

#include "products.h"

namespace hessext::cuda {

constexpr i64 least_split = 512;  // samples of a part, where one tile is shared by several blocks

// Consecutive pieces of a workspace, each aligned.
class Pieces {
    unsigned char* at_;
    i64 used_ = 0;

  public:
    explicit Pieces(void* workspace) : at_(static_cast<unsigned char*>(workspace)) {}
    template <class U>
    U* take(i64 count) {
        U* piece = reinterpret_cast<U*>(at_ + used_);
        used_ += (count * i64(sizeof(U)) + 255) / 256 * 256;
        return count ? piece : nullptr;
    }
    i64 used() const { return used_; }
};

inline double area(i64 rows, i64 cols, i64 side, bool triangle) {
    const Grid tiles{blocks_for(rows, side), blocks_for(cols, side), triangle};
    return double(tiles.count()) * double(side) * double(side);
}

// Which index pair runs outside: the one with less padding. What is outside is sparse where ReLU units are.
template <class T>
Outer choose_outer(const Assembly<T>& r) {
    const Curvature<T>& q = r.curvature;
    constexpr i64 side = 32;
    const double s = double(r.left.size()), t = double(r.right.size()), classes = double(q.classes);
    if (r.pairs || !r.dense.out) return Outer::blocks;
    if (q.kind == Kind::output && q.probs)
        return s * (s + 1) / 2 * area(q.classes, q.classes, side, true) <
                       classes * (classes + 1) / 2 * area(r.left.size(), r.right.size(), side, true)
                   ? Outer::features
                   : Outer::blocks;
    if (q.kind == Kind::cross)
        return t * area(r.left.size(), q.classes, side, false) <
                       classes * area(r.left.size(), r.right.size(), side, false)
                   ? Outer::mixed
                   : Outer::blocks;
    return Outer::blocks;
}

template <class T, class S, class R, bool tensor>
struct TileKernel {
    using Shape = S;
    static constexpr auto multiply = multiply_tiles<T, S, R, tensor>;
};

template <class T>
class AssemblyRun {
    const Stream& stream_;
    Job<T> job_;
    i64 side_, batch_, jobs_;  // entries of a tile's side; pairs in a batch, jobs in a launch
    bool tensor_;
    bool covariance_;
    bool sparse_;  // weights may be zero, as of inactive units
    bool slots_;   // sums are kept in float64, between spans or for several blocks

  public:
    AssemblyRun(const Assembly<T>& request, const Stream& stream)
        : stream_(stream), job_(Outline<T>(request, choose_outer(request))), tensor_(tensor_cores(stream, sizeof(T))) {
        const Outline<T>& o = job_.outline;
        const Curvature<T>& q = o.r.curvature;
        if (std::max({o.r.samples, q.classes, o.r.left.ld, o.r.right.ld}) > INT_MAX)
            throw std::runtime_error("CUDA: expected fewer than 2^31 samples, classes and features");
        const Features<T> classes{q.probs, q.classes, q.classes, false};
        job_.left = o.outer == Outer::features ? classes : o.r.left;
        job_.right = o.outer == Outer::features ? classes : o.r.right;
        job_.triangle = inner_triangle(o.r);
        job_.curvature_column = o.outer == Outer::mixed;
        job_.span = span(tensor_);
        sparse_ = q.kind != Kind::output || o.outer == Outer::features;
        covariance_ = q.kind == Kind::hidden && q.gauss_newton && q.probs;

        const i64 rows = job_.left.size(), cols = job_.right_size();
        side_ = choose_side(rows, cols, job_.triangle);
        job_.tiles = {blocks_for(rows, side_), blocks_for(cols, side_), job_.triangle};
        const i64 tiles = job_.tiles.count();

        const i64 list_bytes = o.r.samples * i64(sparse_ * sizeof(int) +
                                                 sizeof(T) * (1 + o.extra + covariance_ + 2 * job_.curvature_column));
        const i64 pair_bytes = list_bytes + i64(sizeof(i64)) + (o.r.norms ? tiles * i64(sizeof(double)) : 0);
        const i64 pairs = std::min(o.pair_count(), limits().blocks);
        batch_ = std::max<i64>(1, std::min(limits().workspace / pair_bytes, pairs));

        // Few tiles are shared by several blocks, until there are two rounds of them.
        i64 resident = multiprocessors(stream);
        visit([&](auto kernel) {
            using K = decltype(kernel);
            resident *= resident_blocks(K::multiply, K::Shape::threads, sizeof(TileMemory<T, typename K::Shape>));
        });
        job_.splits = std::max<i64>(1, std::min(2 * resident / (batch_ * tiles), o.r.samples / least_split));
        slots_ = job_.splits > 1 || (sizeof(T) < sizeof(double) && o.r.samples > job_.span);
        jobs_ = std::min(batch_ * tiles, limits().blocks / job_.splits);
        if (slots_) jobs_ = std::min(jobs_, limits().workspace / (job_.splits * side_ * side_ * i64(sizeof(double))));
        jobs_ = std::max<i64>(1, jobs_);
    }

    void run() {
        const Outline<T>& o = job_.outline;
        const Curvature<T>& q = o.r.curvature;
        lay_out(stream_.workspace(lay_out(nullptr)));
        if (job_.curvature_column)
            HESSEXT_LAUNCH((transpose<T>), blocks_for(q.classes * q.rows, transpose_threads), transpose_threads, 0,
                           stream_, q.weight, q.classes, q.rows, job_.weight_columns);
        const i64 pairs = o.pair_count();
        for (job_.first_pair = 0; job_.first_pair < pairs; job_.first_pair += batch_) {
            job_.pairs = std::min(batch_, pairs - job_.first_pair);
            list();
            multiply();
        }
    }

  private:
    // Small tiles waste less at the edges and fill the GPU sooner; large ones load less for each product.
    static i64 choose_side(i64 rows, i64 cols, bool triangle) {
        i64 best = 32;
        double least_cost = 2 * area(rows, cols, 32, triangle);
        const auto consider = [&](i64 side, double factor) {
            const double cost = factor * area(rows, cols, side, triangle);
            if (cost < least_cost) best = side, least_cost = cost;
        };
        consider(64, 1.25);
        if (sizeof(T) == sizeof(float)) consider(128, 1);
        return best;
    }

    // f(TileKernel<...>{}) for the kernel in use.
    template <class F>
    void visit(const F& f) const {
        if constexpr (sizeof(T) == sizeof(float))
            if (side_ == 128) return visit_right<Shape<T, 128, 2, 4>>(f);
        side_ == 64 ? visit_right<Shape<T, 64, 2, 2>>(f) : visit_right<Shape<T, 32, 2, 2>>(f);
    }
    template <class S, class F>
    void visit_right(const F& f) const {
        job_.curvature_column ? visit_tensor<S, CurvatureColumn<T, S>>(f) : visit_tensor<S, WeightedFeatures<T, S>>(f);
    }
    template <class S, class R, class F>
    void visit_tensor(const F& f) const {
        tensor_ ? f(TileKernel<T, S, R, true>{}) : f(TileKernel<T, S, R, false>{});
    }

    // Bytes of workspace that are used, wherever it begins.
    i64 lay_out(void* workspace) {
        const Outline<T>& o = job_.outline;
        const Curvature<T>& q = o.r.curvature;
        Pieces pieces(workspace);
        const i64 entries = batch_ * job_.samples;
        Lists<T>& lists = job_.lists;
        lists.index = pieces.take<int>(sparse_ ? entries : 0);
        lists.weight = pieces.take<T>(entries);
        lists.extra = pieces.take<T>(o.extra ? entries : 0);
        lists.at_top = pieces.take<T>(job_.curvature_column ? entries : 0);
        lists.shift = pieces.take<T>(job_.curvature_column ? entries : 0);
        lists.count = pieces.take<i64>(sparse_ ? batch_ : 0);
        job_.covariance = pieces.take<T>(covariance_ ? entries : 0);
        job_.weight_columns = pieces.take<T>(job_.curvature_column ? q.classes * q.rows : 0);
        job_.partial = pieces.take<double>(o.r.norms ? batch_ * job_.tiles.count() : 0);
        job_.slots = pieces.take<double>(slots_ ? jobs_ * job_.splits * side_ * side_ : 0);
        return pieces.used();
    }

    void list() {
        const Outline<T>& o = job_.outline;
        const i64 entries = job_.pairs * job_.samples;
        if (covariance_)
            HESSEXT_LAUNCH((covariances<T>), blocks_for(entries, covariance_threads), covariance_threads, 0, stream_, o,
                           job_.first_pair, job_.pairs, job_.covariance);
        if (sparse_)
            HESSEXT_LAUNCH((list_samples<T>), job_.pairs, list_threads, sizeof(ListMemory), stream_, job_);
        else
            HESSEXT_LAUNCH((weigh_pairs<T>), blocks_for(entries, weight_threads), weight_threads, 0, stream_, o,
                           job_.first_pair, job_.pairs, job_.covariance, job_.lists.weight);
    }

    void multiply() {
        const i64 all = job_.pairs * job_.tiles.count();
        for (job_.first_job = 0; job_.first_job < all; job_.first_job += jobs_) {
            const i64 count = std::min(jobs_, all - job_.first_job);
            visit([&](auto kernel) {
                using K = decltype(kernel);
                using S = typename K::Shape;
                static_assert(sizeof(TileMemory<T, S>) <= most_shared);
                HESSEXT_LAUNCH((K::multiply), count * job_.splits, S::threads, sizeof(TileMemory<T, S>), stream_, job_);
                if (slots_)
                    HESSEXT_LAUNCH((finish_tiles<T, S>), count, S::threads, sizeof(TileMemory<T, S>), stream_, job_);
            });
        }
        const Outline<T>& o = job_.outline;
        if (o.outer == Outer::features)
            HESSEXT_LAUNCH((softmax_diagonals<T>), job_.pairs * blocks_for(o.r.curvature.classes, warp_size),
                           warp_size * diagonal_strips, sizeof(LaneScratch<warp_size * diagonal_strips>), stream_,
                           job_);
        if (job_.partial) HESSEXT_LAUNCH((add_squares<T>), blocks_for(job_.pairs, 128), 128, 0, stream_, job_);
    }
};

template <class T>
void assemble(const Assembly<T>& request, const Stream& stream) {
    use_device(stream);
    AssemblyRun<T>(request, stream).run();
}

}  // namespace hessext::cuda
