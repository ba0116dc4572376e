#include "counters.h"

#include <algorithm>
#include <cstring>

#include "control.h"
#include "scheduler.h"
#include "settings.h"

namespace {

constexpr int kCounters = static_cast<int>(Counter::how_many);
long long counts[kMostDevices][kCounters];
const char *const names[] = {
#define SOFTWARE_GPU_NAME(name) #name,
    SOFTWARE_GPU_COUNTERS(SOFTWARE_GPU_NAME)
#undef SOFTWARE_GPU_NAME
};

long long &cell(Counter counter, int device) { return counts[device][static_cast<int>(counter)]; }

}  // namespace

void count(Counter counter, int device, long long by) {
  cell(counter, device) += by;
  if (counter == Counter::allocated_bytes) {
    long long &peak = cell(Counter::peak_allocated_bytes, device);
    peak = std::max(peak, cell(counter, device));
  }
}

long long counted(Counter counter, int device) { return cell(counter, device); }

CONTROL const char *software_gpu_counter_name(int number) {
  return number < 0 || number >= kCounters ? nullptr : names[number];
}

CONTROL long long software_gpu_counter(int number, int device) {
  Lock lock;
  return counts[device][number];
}

CONTROL void software_gpu_reset_peak(int device) {
  Lock lock;
  cell(Counter::peak_allocated_bytes, device) = cell(Counter::allocated_bytes, device);
}
