// Python's signatures of the operations, made from their declarations: first whether the element type is float64, then
// the arguments as they are declared. Pointers are tensors or None; a struct is a dict of its fields, those left out
// being zero, or a NamedTuple of all. The GIL is released while the core works.
#include "bindings.h"

#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "core.h"

namespace py = pybind11;

namespace hessext {
namespace {

template <class U>
constexpr bool is_struct = requires { U::names; };
template <class U>
constexpr bool is_by = std::is_same_v<U, Threads> || std::is_same_v<U, Stream>;

PyObject* interned(std::string_view name) { return PyUnicode_InternFromString(std::string(name).c_str()); }

py::object checked(PyObject* result) {
    if (!result) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(result);
}

// Of a tensor's first element.
void* address(py::handle tensor) {
    static PyObject* const data_ptr = interned("data_ptr");
    if (tensor.is_none()) return nullptr;
    void* const result = PyLong_AsVoidPtr(checked(PyObject_CallMethodNoArgs(tensor.ptr(), data_ptr)).ptr());
    if (PyErr_Occurred()) throw py::error_already_set();
    return result;
}

// Names of a struct's fields, as Python keeps them.
template <class U>
const py::tuple& names_of() {
    static const py::tuple& names = *new py::tuple([] {  // never freed: it may outlive the interpreter
        py::list found;
        for (std::string_view rest = U::names; !rest.empty();) {
            const std::size_t end = std::min(rest.find(','), rest.size());
            found.append(checked(interned(rest.substr(0, end))));
            rest.remove_prefix(std::min(end + 2, rest.size()));
        }
        return found;
    }());
    return names;
}

template <class U>
[[noreturn]] void refuse(py::handle got) {
    throw py::type_error(std::string("expected fields named ") + U::names + "; got " + std::string(py::str(got)));
}

// Refuses what is no NamedTuple with the fields of a struct, in their order.
template <class U>
void check_fields(py::handle from) {
    const py::object fields = py::getattr(from, "_fields", py::none());
    if (!PyTuple_Check(from.ptr()) || !fields.equal(names_of<U>())) refuse<U>(fields);
}

template <class U>
U read(py::handle from) {
    if constexpr (std::is_pointer_v<U>) {
        return static_cast<U>(address(from));
    } else if constexpr (is_struct<U>) {
        const py::tuple& names = names_of<U>();
        const bool is_dict = PyDict_Check(from.ptr());
        if (!is_dict) check_fields<U>(from);
        Py_ssize_t at = 0, found = 0;
        U result{};
        const auto fill = [&]<class Field>(Field& field) {
            PyObject* const value = is_dict ? PyDict_GetItemWithError(from.ptr(), PyTuple_GET_ITEM(names.ptr(), at))
                                            : PyTuple_GET_ITEM(from.ptr(), at);
            ++at;
            if (value) field = read<Field>(value), ++found;
        };
        std::apply([&](auto&... field) { (fill(field), ...); }, result.fields());
        if (is_dict && found != PyDict_Size(from.ptr())) refuse<U>(checked(PyDict_Keys(from.ptr())));
        return result;
    } else {
        const long long value = PyLong_AsLongLong(from.ptr());  // of a bool, too
        if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
        return U(value);
    }
}

// Lets Python's signal handlers run in the midst of a call: whether one has raised (KeyboardInterrupt).
bool signal_raised() {
    const py::gil_scoped_acquire gil;
    return PyErr_CheckSignals() != 0;
}

template <class... A, class... Read>
void call(void (*operation)(A...), const Read&... arguments) {
    try {
        const py::gil_scoped_release release;
        operation(arguments...);
    } catch (const cpu::Interrupted&) {
        throw py::error_already_set();  // what the handler has raised
    }
}

// What pybind11 hands over: who computes as it is, everything else as an object.
template <class P>
using Argument = std::conditional_t<is_by<std::decay_t<P>>, const std::decay_t<P>&, py::object>;

template <class P>
decltype(auto) converted(const std::remove_reference_t<Argument<P>>& argument) {
    if constexpr (is_by<std::decay_t<P>>)
        return (argument);
    else
        return read<std::decay_t<P>>(argument);
}

// One operation of one device, for both element types.
template <class... A, class... B>
void define(py::module_& m, const char* name, void (*float32)(A...), void (*float64)(B...)) {
    m.def(name, [=](bool wide, Argument<A>... arguments) {
        wide ? call(float64, converted<B>(arguments)...) : call(float32, converted<A>(arguments)...);
    });
}

}  // namespace

void bind(py::module_& m) {
    m.doc() = "Compiled core of hessext; its arguments are not checked here. Use the hessext package.";
    m.attr("__version__") = HESSEXT_VERSION;
    m.attr("build") = HESSEXT_BUILD;
    m.attr("cuda") = cuda::built();
    cpu::set_interrupted(&signal_raised);

    // Local: the emulated module, for tests, has the same ones.
    py::class_<Threads>(m, "Threads", py::module_local()).def(py::init<int>(), py::arg("count"));
    using Address = std::uintptr_t;
    py::class_<Stream>(m, "Stream", py::module_local())
        .def(py::init([](int device, Address handle, std::function<Address(i64)> allocate) {
                 return Stream{device, reinterpret_cast<void*>(handle),
                               [=](i64 bytes) { return reinterpret_cast<void*>(allocate(bytes)); }};
             }),
             py::arg("device"), py::arg("handle"), py::arg("allocate"));

#define HESSEXT_DEFINE(name)                                 \
    define(m, #name, &cpu::name<float>, &cpu::name<double>); \
    define(m, #name, &cuda::name<float>, &cuda::name<double>);
    HESSEXT_OPERATIONS(HESSEXT_DEFINE)

    define(m, "product", &cpu::product<float>, &cpu::product<double>);
    m.def("logits", [](py::object weight, py::object bias, py::object features, i64 classes, i64 samples,
                       py::object out, i64 ld, const Stream& stream) {
        call(&cuda::logits, read<Features<float>>(weight), read<const float*>(bias), read<Features<float>>(features),
             classes, samples, read<float*>(out), ld, stream);
    });
    m.def("tensor_cores", [](const Threads&) { return false; });  // for float32
    m.def("tensor_cores", [](const Stream& stream) { return cuda::tensor_cores(stream, sizeof(float)); });
    m.def("set_tensor_cores", &cuda::set_tensor_cores);
    m.def("set_limits", &cuda::set_limits);

    m.def("advise_huge_pages", [](py::object tensor, i64 bytes) { cpu::advise_huge_pages(address(tensor), bytes); });
    m.def("isas", [] {
        int count = 0;
        const char* const* names = cpu::isas(&count);
        return std::vector<std::string>(names, names + count);
    });
    m.def("isa", &cpu::isa);
    m.def("set_isa", [](const std::string& name) {
        if (!cpu::set_isa(name.c_str())) throw py::value_error("set_isa: '" + name + "' is not available here");
    });
}

}  // namespace hessext
