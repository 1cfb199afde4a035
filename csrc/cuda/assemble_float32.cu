// One element type a file: they are compiled side by side.
#include "assemble.h"

namespace hessext::cuda {

template void assemble<float>(const Assembly<float>&, const Stream&);

}  // namespace hessext::cuda
