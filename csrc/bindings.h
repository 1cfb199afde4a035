#pragma once

#include <pybind11/pybind11.h>

namespace hessext {

// Everything that the compiled core offers to Python.
void bind(pybind11::module_& m);

}  // namespace hessext
