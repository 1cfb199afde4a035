// Workspace of one call.
#pragma once

#include <algorithm>
#include <new>

#include "../core.h"

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

}  // namespace hessext::cpu
