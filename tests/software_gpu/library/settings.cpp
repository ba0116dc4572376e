#include "settings.h"

#include <cstdio>
#include <cstdlib>

namespace {

unsigned long long number(const char *name, unsigned long long otherwise) {
  const char *text = std::getenv(name);
  if (text == nullptr) return otherwise;
  char *end = nullptr;
  unsigned long long value = std::strtoull(text, &end, 10);
  if (end == text || *end != '\0') {
    std::fprintf(stderr, "software GPU: %s=%s is not a number\n", name, text);
    std::exit(2);
  }
  return value;
}

Settings read() {
  unsigned long long devices = number("SWGPU_DEVICES", 2);
  if (devices < 1 || devices > kMostDevices) {
    std::fprintf(stderr, "software GPU: SWGPU_DEVICES must be 1 to %d\n", kMostDevices);
    std::exit(2);
  }
  return {static_cast<int>(devices), number("SWGPU_MEMORY", 8ull << 30), number("SWGPU_SEED", 0),
          std::getenv("SWGPU_LOG") != nullptr};
}

}  // namespace

const Settings &settings() {
  static const Settings once = read();
  return once;
}
