// One element type a file: they are compiled side by side.
#include "assemble.h"

namespace hessext::cuda {

template i64 assemble_workspace<float>(const Assembly<float>&, Stream);
template void assemble<float>(const Assembly<float>&, void*, Stream);

}  // namespace hessext::cuda
