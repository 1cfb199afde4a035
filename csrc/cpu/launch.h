// How work is put on threads, and how a long call is interrupted: the calling thread asks now and then, and all threads
// of its team then skip the remaining work.
#pragma once

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <chrono>

#include "../core.h"

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace hessext::cpu {

// The number of threads that is worth starting for a number of multiply-adds.
inline int team(int threads, double cost) { return int(std::max(1.0, std::min(double(threads), cost / 2e5))); }

// Flushes denormal numbers to zero, per thread: products of probabilities underflow, denormal arithmetic is slow, and
// its results do not matter.
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

bool interrupted();  // calls the function that set_interrupted was given

class Interrupt {
    using Clock = std::chrono::steady_clock;
    static constexpr std::chrono::milliseconds pause{50};

    std::atomic<bool> raised_{false};
    Clock::time_point next_ = Clock::now() + pause;  // of the calling thread alone

  public:
    // For any thread of the team, between pieces of work: whether to skip the rest.
    bool raised() {
        if (omp_get_thread_num() == 0 && !raised_.load(std::memory_order_relaxed) && Clock::now() >= next_) {
            raised_.store(interrupted(), std::memory_order_relaxed);
            next_ = Clock::now() + pause;
        }
        return raised_.load(std::memory_order_relaxed);
    }

    // For the calling thread, outside of parallel regions, from which no exception may escape.
    void check() const {
        if (raised_.load(std::memory_order_relaxed)) throw Interrupted();
    }
};

}  // namespace hessext::cpu
