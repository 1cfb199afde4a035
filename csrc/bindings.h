// The entry of the Python bindings.
#pragma once

#include <pybind11/pybind11.h>

namespace hessext {

// Adds all functions and classes of the compiled core to a Python module.
void bind(pybind11::module_& m);

}  // namespace hessext
