// hessext._emulated: the core with its CUDA kernels run on the host, and what tests tell the emulator and ask it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings.h"
#include "cuda_runtime.h"
#include "emulator.h"

namespace py = pybind11;
namespace emulator = hessext::emulator;

namespace {

// launcher(kernel, blocks, threads of a block, bytes of shared memory, bytes of each argument), or None
void set_launcher(py::object launcher) {
    if (launcher.is_none()) return emulator::set_launcher(nullptr);
    emulator::set_launcher([launcher](const emulator::Launch& l) {
        const py::gil_scoped_acquire gil;
        py::list arguments;
        for (const std::string& bytes : l.arguments) arguments.append(py::bytes(bytes));
        launcher(l.kernel, l.grid.x, l.threads, l.shared, arguments);
    });
}

}  // namespace

PYBIND11_MODULE(_emulated, m, pybind11::mod_gil_not_used()) {
    hessext::bind(m);
    m.def("set_order", &emulator::set_order);
    m.def("set_architecture", [](int architecture) { emulator::architecture = architecture; });
    m.def("set_driver", [](int version) { emulator::driver = version; });
    m.def("set_capturing", [](bool capturing) { emulator::capturing = capturing; });
    m.def("set_launcher", &set_launcher);
    m.def("executed", &emulator::executed);
    m.def("forget_executed", &emulator::forget_executed);
    m.def("reverses", &emulator::reverses);
    m.def("part", &emulator::part);
}
