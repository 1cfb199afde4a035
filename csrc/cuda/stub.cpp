// Stands in for the CUDA kernels where they are not built, so that callers need no #ifdef.
#include "../core.h"

namespace hessext::cuda {

bool built() { return false; }

}  // namespace hessext::cuda
