// The core with its CUDA kernels emulated on the CPU, for tests.
#include "../bindings.h"
#include "emulator.h"

PYBIND11_MODULE(_emulated, m, pybind11::mod_gil_not_used()) {
    using namespace hessext;
    bind(m);
    m.def("set_order", &emulator::set_order);
    m.def("executed", &emulator::executed);
    m.def("reverses", &emulator::reverses);
    m.def("part", &emulator::part);
}
