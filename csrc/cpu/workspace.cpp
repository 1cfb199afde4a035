// What the system is told of memory.
#include "workspace.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace hessext::cpu {

void advise_huge_pages(void* data, i64 bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr std::uintptr_t page = 2 << 20;
    const auto first = (reinterpret_cast<std::uintptr_t>(data) + page - 1) / page * page;
    const auto end = (reinterpret_cast<std::uintptr_t>(data) + std::uintptr_t(bytes)) / page * page;
    if (first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);  // advice: errors are none
#else
    (void)data, (void)bytes;
#endif
}

}  // namespace hessext::cpu
