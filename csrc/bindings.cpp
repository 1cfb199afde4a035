// The only file that knows Python. Tensors arrive as addresses; the GIL is released while the core works.
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

// Calls f with a zero of the element type.
template <class F>
void by_type(bool float64, F f) {
    const py::gil_scoped_release release;
    float64 ? f(double{}) : f(float{});
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
           int threads) {
    by_type(float64, [&]<class T>(T) {
        Assembly<T> request = assembly<T>(part, left, right, symmetric, curvature);
        request.dense = {at<T>(out),
                         ld,
                         {axes[0], axes[1], axes[2], axes[3], left.cols},
                         {axes[4], axes[5], axes[6], axes[7], right.cols},
                         direct,
                         mirror};
        cpu::assemble(request, threads);
    });
}

void pairs(bool float64, int part, const FeaturesArg& left, const FeaturesArg& right, bool symmetric,
           const CurvatureArg& curvature, Address pairs, i64 pair_count, Address blocks, bool transposed, Address norms,
           int threads) {
    by_type(float64, [&]<class T>(T) {
        Assembly<T> request = assembly<T>(part, left, right, symmetric, curvature);
        request.pairs = at<const i64>(pairs);
        request.pair_count = pair_count;
        request.blocks = at<T>(blocks);
        request.transposed = transposed;
        request.norms = at<double>(norms);
        cpu::assemble(request, threads);
    });
}

}  // namespace

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
    m.doc() = "Compiled core of hessext; its arguments are not checked here. Use the hessext package.";
    m.attr("__version__") = HESSEXT_VERSION;
    m.attr("build") = HESSEXT_BUILD;
    m.attr("cuda") = cuda::built();

    py::class_<FeaturesArg>(m, "Features")
        .def(py::init<Address, i64, i64, bool>(), py::arg("data"), py::arg("ld"), py::arg("cols"), py::arg("ones"));
    py::class_<CurvatureArg>(m, "Curvature")
        .def(py::init<i64, i64, i64, bool, Address, Address, Address, Address, Address, Address, Address, Address,
                      Address, Address>(),
             py::arg("samples"), py::arg("units"), py::arg("classes"), py::arg("gauss_newton"), py::arg("scale"),
             py::arg("probs"), py::arg("top"), py::arg("rest"), py::arg("weight"), py::arg("gram"), py::arg("shift"),
             py::arg("slope"), py::arg("bend"), py::arg("residual"));

    m.def("dense", &dense);
    m.def("pairs", &pairs);
    m.def("softmax_top",
          [](bool float64, Address probs, i64 samples, i64 classes, Address top, Address rest, int threads) {
              by_type(float64, [&]<class T>(T) {
                  cpu::softmax_top(at<const T>(probs), samples, classes, at<i64>(top), at<T>(rest), threads);
              });
          });
    m.def("label_residual", [](bool float64, Address probs, Address scale, Address label, Address top, Address rest,
                               i64 samples, i64 classes, Address out, int threads) {
        by_type(float64, [&]<class T>(T) {
            cpu::label_residual(at<const T>(probs), at<const T>(scale), at<const i64>(label), at<const i64>(top),
                                at<const T>(rest), samples, classes, at<T>(out), threads);
        });
    });
    m.def("softmax_shift", [](bool float64, Address probs, Address top, Address weight, i64 samples, i64 classes,
                              i64 units, Address shift, int threads) {
        by_type(float64, [&]<class T>(T) {
            cpu::softmax_shift(at<const T>(probs), at<const i64>(top), at<const T>(weight), samples, classes, units,
                               at<T>(shift), threads);
        });
    });
    m.def("curvature_entries", [](bool float64, int part, const CurvatureArg& curvature, Address pairs, i64 pair_count,
                                  Address out, int threads) {
        by_type(float64, [&]<class T>(T) {
            cpu::curvature_entries(Part(part), curvature.as<T>(), at<const i64>(pairs), pair_count, at<T>(out),
                                   threads);
        });
    });

    m.def("softmax_scan", [](bool float64, Address logits, i64 classes, i64 samples, i64 first, Address largest,
                             Address top, Address others, int threads) {
        by_type(float64, [&]<class T>(T) {
            cpu::softmax_scan(at<const T>(logits), classes, samples, first, at<T>(largest), at<i64>(top),
                              at<double>(others), threads);
        });
    });
    m.def("softmax_others", [](bool float64, Address logits, i64 classes, i64 samples, i64 first, Address largest,
                               Address top, Address others, Address lift, int threads) {
        by_type(float64, [&]<class T>(T) {
            cpu::softmax_others(at<T>(logits), classes, samples, first, at<const T>(largest), at<const i64>(top),
                                at<const double>(others), at<const double>(lift), threads);
        });
    });
    m.def("gram_sums", [](bool float64, i64 depth, i64 rows, i64 cols, Address left, i64 left_ld, Address right,
                          i64 right_ld, Address weight, bool triangle, Address products, Address left_lift,
                          Address right_lift, Address sums, int threads) {
        by_type(float64, [&]<class T>(T) {
            cpu::gram_sums<T>(
                {depth, rows, cols, at<const T>(left), left_ld, at<const T>(right), right_ld, at<const T>(weight),
                 triangle, at<double>(products), at<const double>(left_lift), at<const double>(right_lift)},
                at<double>(sums), threads);
        });
    });
    m.def("gram_tops", [](bool float64, i64 rows, i64 cols, Address weight, bool triangle, Address products,
                          Address left_lift, Address right_lift, const std::array<Address, 4>& left,
                          const std::array<Address, 4>& right, Address sums, int threads) {
        by_type(float64, [&]<class T>(T) {
            cpu::gram_tops<T>({0, rows, cols, nullptr, 0, nullptr, 0, at<const T>(weight), triangle,
                               at<double>(products), at<const double>(left_lift), at<const double>(right_lift)},
                              tops<T>(left), tops<T>(right), at<double>(sums), threads);
        });
    });

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
