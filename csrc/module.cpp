#include "bindings.h"

PYBIND11_MODULE(_core, m, pybind11::mod_gil_not_used()) { hessext::bind(m); }
