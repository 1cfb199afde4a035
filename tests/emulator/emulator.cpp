// The threads of a block as fibers. ucontext starts them; setjmp switches between them, which costs no system call.
#include "emulator.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <set>
#include <stdexcept>

#include "cuda_runtime.h"
#include "stacks.h"

constinit thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace hessext::emulator {

int architecture = 90, driver = 13000;
bool capturing = false;
thread_local cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeGlobal;
thread_local cudaError_t last_error = cudaSuccess;
constinit thread_local unsigned char* shared_memory = nullptr;

namespace {

constexpr unsigned warp_size = 32;

enum class State { ready, at_block_barrier, at_warp_barrier, done };

struct Fiber {
    jmp_buf context;
    State state = State::ready;
    unsigned round = 0;  // of warp exchanges
    bool started = false;
    ucontext_t entry{};
    std::unique_ptr<unsigned char[]> memory{new unsigned char[stack_bytes]};
    Stack stack{memory.get(), stack_bytes};
};

struct Warp {
    alignas(64) unsigned char values[2][warp_size * stride];  // of even and odd rounds
};

std::mutex registry_mutex;
std::set<std::string> registry;  // names of the kernels launched
std::set<const void*> loaded;
std::map<const void*, std::size_t> shared_allowed;
std::uint64_t order_seed = 0;
std::function<void(const Launch&)> launcher;

class Machine {  // of one host thread
    std::vector<std::unique_ptr<Fiber>> fibers_;
    std::vector<Warp> warps_;
    jmp_buf scheduler_;
    Stack own_;  // of the host thread
    const std::function<void()>* body_ = nullptr;
    Fiber* current_ = nullptr;
    std::mt19937_64 random_;
    bool shuffled_ = false;

    static Machine*& mine() {
        static thread_local Machine* machine = nullptr;
        return machine;
    }

    static void enter() {  // a fiber runs one thread of a block after the other
        mine()->own_.left_for(mine()->current_->stack);
        for (;;) {
            Machine& m = *mine();
            (*m.body_)();
            m.leave(State::done);
        }
    }

    void resume(unsigned t) {
        current_ = fibers_[t].get();
        threadIdx = {t, 0, 0};
        own_.leave_for(current_->stack);
        if (_setjmp(scheduler_)) return current_->stack.left_for(own_);
        if (current_->started) _longjmp(current_->context, 1);
        current_->started = true;
        getcontext(&current_->entry);
        current_->entry.uc_stack.ss_sp = current_->memory.get();
        current_->entry.uc_stack.ss_size = stack_bytes;
        current_->entry.uc_link = nullptr;
        makecontext(&current_->entry, &Machine::enter, 0);
        setcontext(&current_->entry);
    }

    template <class It>
    void shuffle(It begin, It end) {
        if (shuffled_) std::shuffle(begin, end, random_);
    }

    bool all(unsigned first, unsigned last, State state) const {
        return std::all_of(fibers_.begin() + first, fibers_.begin() + last,
                           [&](const auto& f) { return f->state == state; });
    }
    void release(unsigned first, unsigned last) {
        for (unsigned t = first; t < last; ++t) fibers_[t]->state = State::ready;
    }

    // Runs a warp as far as it gets: up to the block's barrier, or to its end.
    void run_warp(unsigned warp) {
        const unsigned first = warp * warp_size, last = first + warp_size;
        std::vector<unsigned> lanes(warp_size);
        std::iota(lanes.begin(), lanes.end(), first);
        for (;;) {
            shuffle(lanes.begin(), lanes.end());
            for (const unsigned t : lanes)
                if (fibers_[t]->state == State::ready) resume(t);
            if (!all(first, last, State::at_warp_barrier)) break;
            release(first, last);
        }
    }

    void run_block(unsigned threads) {
        release(0, threads);
        std::vector<unsigned> order(threads / warp_size);
        std::iota(order.begin(), order.end(), 0);
        for (;;) {
            shuffle(order.begin(), order.end());
            for (const unsigned warp : order) run_warp(warp);
            if (all(0, threads, State::done)) return;
            if (!all(0, threads, State::at_block_barrier))
                throw std::logic_error("threads of a block wait at different barriers");
            release(0, threads);
        }
    }

  public:
    static Machine& here() {
        if (!mine()) {
            static thread_local std::unique_ptr<Machine> owner;
            owner = std::make_unique<Machine>();
            mine() = owner.get();
        }
        return *mine();
    }

    void leave(State state) {
        current_->state = state;
        current_->stack.leave_for(own_);
        if (!_setjmp(current_->context)) _longjmp(scheduler_, 1);
        own_.left_for(current_->stack);
    }

    const unsigned char* exchange(const void* value, std::size_t size) {
        unsigned char* values = warps_[threadIdx.x / warp_size].values[current_->round++ % 2];
        if (size) std::memcpy(values + lane() * stride, value, size);
        leave(State::at_warp_barrier);
        return values;
    }

    void run(const Launch& launch) {
        const auto& [kernel, grid, threads, shared, arguments, body] = launch;
        if (threads == 0 || threads % warp_size || threads > 1024)
            throw std::logic_error(kernel + ": blocks are whole warps, at most 1024 threads");
        while (fibers_.size() < threads) fibers_.push_back(std::make_unique<Fiber>());
        for (auto& f : fibers_) f->round = 0;
        warps_.resize(fibers_.size() / warp_size);
        body_ = &body;
        shuffled_ = order_seed != 0;
        random_.seed(order_seed);
        std::vector<unsigned> blocks(grid.x);
        std::iota(blocks.begin(), blocks.end(), 0);
        shuffle(blocks.begin(), blocks.end());
        // Exactly as large as asked for, so that a sanitizer sees what lies beyond.
        const std::unique_ptr<unsigned char[]> memory(new unsigned char[std::max<std::size_t>(shared, 1)]);
        shared_memory = memory.get(), blockDim = threads, gridDim = grid;
        for (const unsigned b : blocks) {
            std::memset(memory.get(), 0xFF, shared);
            blockIdx = {b, 0, 0};
            try {
                run_block(threads);
            } catch (const std::logic_error& error) {
                fibers_.clear();  // they hang in the middle of the kernel
                throw std::logic_error(kernel + ": " + error.what());
            }
        }
    }
};

}  // namespace

void run(const Launch& launch) {
    if (launcher) return launcher(launch);
    {
        const std::lock_guard<std::mutex> lock(registry_mutex);
        registry.insert(launch.kernel);
    }
    Machine::here().run(launch);
}

void allow_shared(const void* kernel, int bytes) {
    if (bytes > 64 << 10) throw std::logic_error("more than 64 KiB of shared memory, which sm_75 has not");
    const std::lock_guard<std::mutex> lock(registry_mutex);
    shared_allowed[kernel] = std::size_t(bytes);
}

void check_shared(const void* kernel, const std::string& name, std::size_t bytes) {
    const std::lock_guard<std::mutex> lock(registry_mutex);
    const auto allowed = shared_allowed.find(kernel);
    if (bytes > (allowed == shared_allowed.end() ? 48 << 10 : allowed->second))
        throw std::logic_error(name + ": more shared memory than it has asked for");
}

bool load(const void* kernel) {
    const std::lock_guard<std::mutex> lock(registry_mutex);
    if (!capturing || capture_mode == cudaStreamCaptureModeRelaxed) loaded.insert(kernel);
    return loaded.count(kernel) != 0;
}

void block_barrier() { Machine::here().leave(State::at_block_barrier); }
const unsigned char* warp_exchange(const void* value, std::size_t size) {
    return Machine::here().exchange(value, size);
}

std::string kernel_of(const std::string& caller) {
    const std::string before = "kernel = ";
    const std::size_t begin = caller.find(before) + before.size();
    return caller.substr(begin, caller.find(" A = ", begin) - 1 - begin);
}

void set_order(std::uint64_t seed) { order_seed = seed; }

void set_launcher(std::function<void(const Launch&)> other) { launcher = std::move(other); }

void forget_executed() {
    const std::lock_guard<std::mutex> lock(registry_mutex);
    registry.clear();
}
std::vector<std::string> executed() {
    const std::lock_guard<std::mutex> lock(registry_mutex);
    return {registry.begin(), registry.end()};
}

}  // namespace hessext::emulator
