// What AddressSanitizer must be told when fibers change stacks; nothing without it.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace hessext::emulator {

#if defined(__SANITIZE_ADDRESS__)

constexpr std::size_t stack_bytes = 512 << 10;  // it pads every variable

struct Stack {
    const void* bottom = nullptr;
    std::size_t size = 0;
    void* fake = nullptr;  // where it keeps variables to find uses after return

    void leave_for(const Stack& next) { __sanitizer_start_switch_fiber(&fake, next.bottom, next.size); }
    // On arrival; learns where the left stack lies.
    void left_for(const Stack& here) { __sanitizer_finish_switch_fiber(here.fake, &bottom, &size); }
};

#else

constexpr std::size_t stack_bytes = 128 << 10;

struct Stack {
    Stack() = default;
    Stack(void*, std::size_t) {}
    void leave_for(const Stack&) {}
    void left_for(const Stack&) {}
};

#endif

}  // namespace hessext::emulator
