// Workspace of one call.
#pragma once

#include <algorithm>
#include <new>

#include "../core.h"

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace hessext::cpu {

template <class T>
class Buffer {  // aligned, uninitialized; throws std::bad_alloc
    T* data_;

  public:
    explicit Buffer(i64 count)
        : data_(static_cast<T*>(::operator new(sizeof(T) * std::max<i64>(count, 1), std::align_val_t(64)))) {}
    ~Buffer() { ::operator delete(data_, std::align_val_t(64)); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    T* get() const { return data_; }
};

// Products of probabilities underflow; denormal arithmetic is slow and its results do not matter. Per thread.
class FlushDenormals {
#if defined(__SSE2__)
    unsigned saved = _mm_getcsr();

  public:
    FlushDenormals() { _mm_setcsr(saved | 0x8040); }
    ~FlushDenormals() { _mm_setcsr(saved); }
#else
  public:
    FlushDenormals() {}
    ~FlushDenormals() {}
#endif
    FlushDenormals(const FlushDenormals&) = delete;
    FlushDenormals& operator=(const FlushDenormals&) = delete;
};

}  // namespace hessext::cpu
