// One element type a file: they are compiled side by side.
#include "assemble.h"

namespace hessext::cuda {

template void assemble<double>(const Assembly<double>&, const Stream&);

}  // namespace hessext::cuda
