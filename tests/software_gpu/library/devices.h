// The devices: which one is current, what they say of themselves, and whether they still work.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "settings.h"

struct Lock;

struct Device {
  size_t memory = settings().memory;  // bytes that can be allocated
  // Of a device that failed: every later call on it returns this, as after a real kernel error; only a new process helps.
  cudaError_t error = cudaSuccess;
  std::string reason;
  bool held = false;                // its streams stand still
  long long kernels = 0;            // enqueued so far
  long long failing_kernel = -1;    // the number of the kernel that fails when it runs
  long long refused_kernel = -1;    // the number of the kernel whose launch is refused
  size_t persisting_l2 = 0;         // bytes of L2 set aside for persisting accesses
  bool reaches[kMostDevices] = {};  // devices whose memory its kernels may use
};

/// Returns the device of the calling thread.
int current_device();

Device &device(int number);

/// Fails with the error of a device that does not work any more.
cudaError_t check_device(int number);
