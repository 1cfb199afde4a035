// One element type a file: they are compiled side by side.
#include "assemble.h"

namespace hessext::cuda {

template i64 assemble_workspace<double>(const Assembly<double>&, Stream);
template void assemble<double>(const Assembly<double>&, void*, Stream);

}  // namespace hessext::cuda
