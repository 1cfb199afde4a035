// Whom long calls ask whether to give up.
#include "launch.h"

namespace hessext::cpu {
namespace {

std::atomic<bool (*)()> asked{nullptr};

}  // namespace

void set_interrupted(bool (*function)()) { asked.store(function); }
bool interrupted() {
    const auto function = asked.load();
    return function && function();
}

}  // namespace hessext::cpu
