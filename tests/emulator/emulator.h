// What tests tell the emulator, and ask it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace hessext::emulator {

// Threads and blocks run in random order between barriers, a new one for each seed; 0: in the order of their indices.
void set_order(std::uint64_t seed);

// Who runs launches from now on instead of the emulator: tests/ptx does, from PTX. Null: the emulator again.
struct Launch;
void set_launcher(std::function<void(const Launch&)> launcher);

// Names of the kernels launched since all were forgotten, with their template arguments.
std::vector<std::string> executed();
void forget_executed();

// Self-test: whether a kernel is right with and without its barrier; one whose threads meet at different barriers.
bool reverses(bool barrier);
void part();

}  // namespace hessext::emulator
