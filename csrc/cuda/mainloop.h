// The main loop of one product over its samples: operands are brought to shared memory, and multiplied there.
#pragma once

#include "copy.h"
#include "tile.h"

namespace hessext::cuda {

// Takes the operands of one product through two stages of shared memory: while one is multiplied, the next is loaded.
// The operands have these methods:
//   prepare(s)      reads what stage s needs to be addressed (indices, weights),
//   fetch()         starts its loads into registers,
//   store(stage)    writes them to shared memory.
template <class Stage, class Operands, class Multiply>
__device__ __forceinline__ void mainloop(Operands& operands, int count, Stage* stages, const Multiply& multiply) {
    if (!count) return;
    __syncthreads();  // earlier stages may still be read
    operands.prepare(0);
    operands.fetch();
    operands.store(stages[0]);
    if (count > 1) operands.prepare(1);
    __syncthreads();
    for (int s = 0; s < count; ++s) {
        if (s + 1 < count) {
            operands.fetch();
            if (s + 2 < count) operands.prepare(s + 2);
        }
        multiply(stages[s % 2]);
        if (s + 1 < count) operands.store(stages[(s + 1) % 2]);
        __syncthreads();
    }
}

// The same through three stages that are copied asynchronously: while one is multiplied, two are loaded. The operands
// have these methods, which advance from stage to stage:
//   find()          reads which rows the next stage has,
//   copy(stage)     begins to copy these,
//   prepare()       reads the weights of the next stage,
//   finish(stage)   applies them to the entries that this thread has copied,
//   fill(stage)     writes the entries that are not copied, once.
template <class Stage, class Operands, class Multiply>
__device__ __forceinline__ void asynchronous_mainloop(Operands& operands, int count, Stage* stages,
                                                      const Multiply& multiply) {
    if (!count) return;
    __syncthreads();  // earlier stages may still be read
    for (int s = 0; s < 3; ++s) operands.fill(stages[s]);
    int now = 1, next = 2, later = 0;
    operands.find();
#pragma unroll 1
    for (int s = -2; s < count; ++s) {
        if (s + 2 < count) operands.copy(stages[later]);
        commit_copies();
        operands.find();
        if (s + 1 >= 0) operands.prepare();
        if (s >= 0) multiply(stages[now]);
        wait_for_copies<1>();
        if (s + 1 >= 0 && s + 1 < count) operands.finish(stages[next]);
        __syncthreads();
        const int done = now;
        now = next, next = later, later = done;
    }
}

}  // namespace hessext::cuda
