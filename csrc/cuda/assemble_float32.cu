// One element type a file: they are compiled side by side.
#include "assemble.h"

namespace hessext::cuda {

template decltype(assemble<float>) assemble<float>;

}  // namespace hessext::cuda
