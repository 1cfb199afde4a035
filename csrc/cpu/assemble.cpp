// The entry point of assembly on the CPU.
#include "assemble_pairwise.h"
#include "assemble_together.h"

namespace hessext::cpu {

template <class T>
void assemble(const Assembly<T>& request, const By& by) {
    const Kernels<T>& kernel = kernels<T>();
    const Plan plan = make_plan(kernel, request);
    const int threads = team(by.count, plan.cost);
    if (plan.method == Method::together)
        TogetherAssembly<T>(request, kernel, plan, threads).run();
    else
        PairwiseAssembly<T>(request, kernel, plan, threads).run();
}

HESSEXT_INSTANTIATE(assemble)

}  // namespace hessext::cpu
