// What the environment says about the machine that is simulated; read once.
#pragma once

#include <cstddef>

constexpr int kMostDevices = 16;

struct Settings {
  int devices;         // SWGPU_DEVICES, 2 if not set
  size_t memory;       // SWGPU_MEMORY: bytes of each device, 8 GiB if not set
  unsigned long seed;  // SWGPU_SEED: chooses the schedule, 0 if not set
  bool log;            // SWGPU_LOG: every call is a line on stderr
};

const Settings &settings();
