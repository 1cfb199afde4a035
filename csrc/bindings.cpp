// The only file that knows Python. Tensors arrive as addresses; the GIL is released while the core works.
#include "bindings.h"

#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>
#include <vector>

#include "core.h"

namespace py = pybind11;
using namespace hessext;
using Address = std::uintptr_t;  // of a tensor's first element; 0 for None

namespace {

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

struct FeaturesArg {  // address, row stride, columns, ones
    Address data;
    i64 ld, cols;
    bool ones;

    template <class T>
    Features<T> as() const {
        return {at<const T>(data), ld, cols, ones};
    }
};

struct CurvatureArg {
    i64 samples, units, classes;
    bool gauss_newton;
    Address scale, probs, top, rest, weight, gram, shift, slope, bend, residual;

    template <class T>
    Curvature<T> as() const {
        return {samples,
                units,
                classes,
                gauss_newton,
                at<const T>(scale),
                at<const T>(probs),
                at<const i64>(top),
                at<const T>(rest),
                at<const T>(weight),
                at<const T>(gram),
                at<const T>(shift),
                at<const T>(slope),
                at<const T>(bend),
                at<const T>(residual)};
    }
};

template <class T>
Tops<T> tops(const std::array<Address, 4>& a) {  // top, p, rest, at_other
    return {at<const i64>(a[0]), at<const double>(a[1]), at<const double>(a[2]), at<const T>(a[3])};
}

// Who computes: threads of the CPU, or, if there are none, a stream of a GPU.
struct Where {
    int threads;
    cuda::Stream stream;
};

// Lets Python's signal handlers run in the midst of a call: whether one has raised (KeyboardInterrupt).
bool signal_raised() {
    const py::gil_scoped_acquire gil;
    return PyErr_CheckSignals() != 0;
}

// Calls f with a zero of the element type.
template <class F>
void by_type(bool float64, F f) {
    try {
        const py::gil_scoped_release release;
        float64 ? f(double{}) : f(float{});
    } catch (const cpu::Interrupted&) {
        throw py::error_already_set();  // what the handler has raised
    }
}

// The same operation of the CPU or of the GPU.
template <class Cpu, class Cuda, class... A>
void call(const Where& where, Cpu cpu, Cuda cuda, A... arguments) {
    where.threads ? cpu(arguments..., where.threads) : cuda(arguments..., where.stream);
}

template <class T>
Assembly<T> assembly(int part, const FeaturesArg& left, const FeaturesArg& right, bool symmetric,
                     const CurvatureArg& curvature) {
    Assembly<T> request{};
    request.part = Part(part);
    request.left = left.as<T>();
    request.right = right.as<T>();
    request.symmetric = symmetric;
    request.curvature = curvature.as<T>();
    return request;
}

void dense(bool float64, int part, const FeaturesArg& left, const FeaturesArg& right, bool symmetric,
           const CurvatureArg& curvature, Address out, i64 ld, const std::array<i64, 8>& axes, bool direct, bool mirror,
           const Where& where) {
    by_type(float64, [&]<class T>(T) {
        Assembly<T> request = assembly<T>(part, left, right, symmetric, curvature);
        request.dense = {at<T>(out),
                         ld,
                         {axes[0], axes[1], axes[2], axes[3], left.cols},
                         {axes[4], axes[5], axes[6], axes[7], right.cols},
                         direct,
                         mirror};
        call(where, cpu::assemble<T>, cuda::assemble<T>, request);
    });
}

void pairs(bool float64, int part, const FeaturesArg& left, const FeaturesArg& right, bool symmetric,
           const CurvatureArg& curvature, Address pairs, i64 pair_count, Address blocks, bool transposed, Address norms,
           const Where& where) {
    by_type(float64, [&]<class T>(T) {
        Assembly<T> request = assembly<T>(part, left, right, symmetric, curvature);
        request.pairs = at<const i64>(pairs);
        request.pair_count = pair_count;
        request.blocks = at<T>(blocks);
        request.transposed = transposed;
        request.norms = at<double>(norms);
        call(where, cpu::assemble<T>, cuda::assemble<T>, request);
    });
}

void bind_softmax(py::module_& m) {
    m.def("softmax", [](bool float64, Address logits, i64 samples, i64 classes, Address top, Address rest,
                        const Where& where) {
        by_type(float64, [&]<class T>(T) {
            call(where, cpu::softmax<T>, cuda::softmax<T>, at<T>(logits), samples, classes, at<i64>(top), at<T>(rest));
        });
    });
    m.def("label_residual", [](bool float64, Address probs, Address scale, Address label, Address top, Address rest,
                               i64 samples, i64 classes, Address out, const Where& where) {
        by_type(float64, [&]<class T>(T) {
            call(where, cpu::label_residual<T>, cuda::label_residual<T>, at<const T>(probs), at<const T>(scale),
                 at<const i64>(label), at<const i64>(top), at<const T>(rest), samples, classes, at<T>(out));
        });
    });
    m.def("softmax_product", [](bool float64, Address probs, Address scale, Address top, Address v, i64 samples,
                                i64 classes, Address out, const Where& where) {
        by_type(float64, [&]<class T>(T) {
            call(where, cpu::softmax_product<T>, cuda::softmax_product<T>, at<const T>(probs), at<const T>(scale),
                 at<const i64>(top), at<const T>(v), samples, classes, at<T>(out));
        });
    });
    m.def("softmax_shift", [](bool float64, Address probs, Address top, Address weight, i64 samples, i64 classes,
                              i64 units, Address shift, const Where& where) {
        by_type(float64, [&]<class T>(T) {
            call(where, cpu::softmax_shift<T>, cuda::softmax_shift<T>, at<const T>(probs), at<const i64>(top),
                 at<const T>(weight), samples, classes, units, at<T>(shift));
        });
    });
    m.def("curvature_entries", [](bool float64, int part, const CurvatureArg& curvature, Address pairs, i64 pair_count,
                                  Address out, const Where& where) {
        by_type(float64, [&]<class T>(T) {
            call(where, cpu::curvature_entries<T>, cuda::curvature_entries<T>, Part(part), curvature.as<T>(),
                 at<const i64>(pairs), pair_count, at<T>(out));
        });
    });
    m.def("logits", [](const FeaturesArg& weight, Address bias, const FeaturesArg& features, i64 classes, i64 samples,
                       Address out, const Where& where) {
        const py::gil_scoped_release release;
        cuda::logits(weight.as<float>(), at<const float>(bias), features.as<float>(), classes, samples, at<float>(out),
                     where.stream);
    });
    m.def("softmax_scan", [](bool float64, Address logits, i64 classes, i64 samples, i64 first, Address largest,
                             Address top, Address others, const Where& where) {
        by_type(float64, [&]<class T>(T) {
            call(where, cpu::softmax_scan<T>, cuda::softmax_scan<T>, at<const T>(logits), classes, samples, first,
                 at<T>(largest), at<i64>(top), at<double>(others));
        });
    });
    m.def("softmax_others", [](bool float64, Address logits, i64 classes, i64 samples, i64 first, Address largest,
                               Address top, Address others, Address lift, const Where& where) {
        by_type(float64, [&]<class T>(T) {
            call(where, cpu::softmax_others<T>, cuda::softmax_others<T>, at<T>(logits), classes, samples, first,
                 at<const T>(largest), at<const i64>(top), at<const double>(others), at<const double>(lift));
        });
    });
}

// Without the sides of the product.
template <class T>
Gram<T> gram(i64 rows, i64 cols, Address weight, bool triangle, Address products, Address left_unit,
             Address right_unit) {
    Gram<T> request{};
    request.rows = rows, request.cols = cols;
    request.weight = at<const T>(weight), request.triangle = triangle;
    request.products = at<double>(products);
    request.left_unit = at<const double>(left_unit), request.right_unit = at<const double>(right_unit);
    return request;
}

void bind_gram(py::module_& m) {
    m.def("gram_sums", [](bool float64, i64 depth, i64 rows, i64 cols, Address left, i64 left_ld, Address right,
                          i64 right_ld, Address weight, bool triangle, Address products, Address left_unit,
                          Address right_unit, Address sums, const Where& where) {
        by_type(float64, [&]<class T>(T) {
            Gram<T> request = gram<T>(rows, cols, weight, triangle, products, left_unit, right_unit);
            request.depth = depth;
            request.left = at<const T>(left), request.left_ld = left_ld;
            request.right = at<const T>(right), request.right_ld = right_ld;
            call(where, cpu::gram_sums<T>, cuda::gram_sums<T>, request, at<double>(sums));
        });
    });
    m.def("gram_tops", [](bool float64, i64 rows, i64 cols, Address weight, bool triangle, Address products,
                          Address left_unit, Address right_unit, const std::array<Address, 4>& left,
                          const std::array<Address, 4>& right, Address sums, const Where& where) {
        by_type(float64, [&]<class T>(T) {
            const Gram<T> request = gram<T>(rows, cols, weight, triangle, products, left_unit, right_unit);
            call(where, cpu::gram_tops<T>, cuda::gram_tops<T>, request, tops<T>(left), tops<T>(right),
                 at<double>(sums));
        });
    });
}

}  // namespace

void hessext::bind(py::module_& m) {
    m.doc() = "Compiled core of hessext; its arguments are not checked here. Use the hessext package.";
    m.attr("__version__") = HESSEXT_VERSION;
    m.attr("build") = HESSEXT_BUILD;
    m.attr("cuda") = cuda::built();
    cpu::set_interrupted(&signal_raised);

    // Local: the emulated module, for tests, has the same ones.
    py::class_<FeaturesArg>(m, "Features", py::module_local())
        .def(py::init<Address, i64, i64, bool>(), py::arg("data"), py::arg("ld"), py::arg("cols"), py::arg("ones"));
    py::class_<CurvatureArg>(m, "Curvature", py::module_local())
        .def(py::init<i64, i64, i64, bool, Address, Address, Address, Address, Address, Address, Address, Address,
                      Address, Address>(),
             py::arg("samples"), py::arg("units"), py::arg("classes"), py::arg("gauss_newton"), py::arg("scale"),
             py::arg("probs"), py::arg("top"), py::arg("rest"), py::arg("weight"), py::arg("gram"), py::arg("shift"),
             py::arg("slope"), py::arg("bend"), py::arg("residual"));
    py::class_<Where>(m, "Where", py::module_local())
        .def(py::init([](int threads) { return Where{threads, {}}; }), py::arg("threads"))
        .def(py::init([](int device, Address stream, std::function<Address(i64)> allocate) {
                 return Where{0, {device, at<void>(stream), [=](i64 bytes) { return at<void>(allocate(bytes)); }}};
             }),
             py::arg("device"), py::arg("stream"), py::arg("allocate"));

    m.def("dense", &dense);
    m.def("pairs", &pairs);
    bind_softmax(m);
    bind_gram(m);

    m.def("isas", [] {
        int count = 0;
        const char* const* names = cpu::isas(&count);
        return std::vector<std::string>(names, names + count);
    });
    m.def("isa", &cpu::isa);
    m.def("set_isa", [](const std::string& name) {
        if (!cpu::set_isa(name.c_str())) throw py::value_error("set_isa: '" + name + "' is not available here");
    });
    m.def("set_tensor_cores", &cuda::set_tensor_cores);
    m.def("set_limits", &cuda::set_limits);
    m.def("tensor_cores", [](const Where& where) {  // for float32
        return !where.threads && cuda::tensor_cores(where.stream, sizeof(float));
    });
}
