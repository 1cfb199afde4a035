// hessext._emulated: the core with its CUDA kernels run on the host, and what tests tell the emulator and ask it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings.h"
#include "emulator.h"

namespace emulator = hessext::emulator;

PYBIND11_MODULE(_emulated, m, pybind11::mod_gil_not_used()) {
    hessext::bind(m);
    m.def("set_order", &emulator::set_order);
    m.def("executed", &emulator::executed);
    m.def("forget_executed", &emulator::forget_executed);
    m.def("reverses", &emulator::reverses);
    m.def("part", &emulator::part);
}
