// Time to read a buffer again and again: bandwidth against working set shows how much of a cache can really be used.

#include <chrono>
#include <cstddef>

using Line = float __attribute__((vector_size(64)));

// Seconds for `passes` passes over `bytes` bytes at `data`, which is aligned to 64 bytes; `bytes` is a multiple of 512.
extern "C" double read_seconds(const void* data, size_t bytes, size_t passes, float* sum) {
  const Line* lines = static_cast<const Line*>(data);
  const size_t count = bytes / sizeof(Line);
  Line sums[8] = {};  // eight chains, so that additions do not wait for one another
  const auto start = std::chrono::steady_clock::now();
  for (size_t pass = 0; pass < passes; ++pass)
    for (size_t i = 0; i < count; i += 8)
      for (size_t j = 0; j < 8; ++j) sums[j] += lines[i + j];
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  for (const Line& line : sums) *sum += line[0];
  return seconds;
}
