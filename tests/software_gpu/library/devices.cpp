#include "devices.h"

#include <cstdio>
#include <cstring>

#include "control.h"
#include "counters.h"
#include "errors.h"
#include "scheduler.h"

namespace {

thread_local int current = 0;
Device devices[kMostDevices];

// Of an H200, for what torch, inductor and the planner read.
constexpr int kL2Bytes = 60 << 20;
constexpr int kMostPersistingBytes = 37 << 20;
constexpr int kLargestWindow = 128 << 20;
constexpr int kMultiprocessors = 132;
constexpr int kThreadsOfBlock = 1024;
constexpr int kThreadsOfMultiprocessor = 2048;
constexpr int kRegisters = 65536;
constexpr int kSharedBytesOfBlock = 232448;
constexpr int kSharedBytesOfMultiprocessor = 233472;

bool exists(int number) { return number >= 0 && number < settings().devices; }

}  // namespace

int current_device() { return current; }

Device &device(int number) { return devices[number]; }

cudaError_t check_device(int number) {
  const Device &asked = devices[number];
  return asked.error == cudaSuccess ? cudaSuccess : fail(asked.error, asked.reason);
}

CUDA_CALL cudaGetDeviceCount(int *count) {
  *count = settings().devices;
  return cudaSuccess;
}

CUDA_CALL cudaGetDevice(int *number) {
  *number = current;
  return cudaSuccess;
}

CUDA_CALL cudaSetDevice(int number) {
  if (!exists(number)) return fail(cudaErrorInvalidDevice, "cudaSetDevice");
  current = number;
  return cudaSuccess;
}

CUDA_CALL cudaDriverGetVersion(int *version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

CUDA_CALL cudaRuntimeGetVersion(int *version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

CUDA_CALL cudaGetDeviceProperties(cudaDeviceProp *properties, int number) {
  if (!exists(number)) return fail(cudaErrorInvalidDevice, "cudaGetDeviceProperties");
  std::memset(properties, 0, sizeof *properties);
  // Code that asks for a device by its name, as the planner does, finds a device that it knows.
  std::snprintf(properties->name, sizeof properties->name, "NVIDIA H200");
  properties->uuid.bytes[0] = static_cast<char>(number + 1);
  properties->totalGlobalMem = devices[number].memory;
  properties->sharedMemPerBlock = 49152;
  properties->regsPerBlock = kRegisters;
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = kThreadsOfBlock;
  const int threads[] = {1024, 1024, 64}, blocks[] = {2147483647, 65535, 65535};
  std::memcpy(properties->maxThreadsDim, threads, sizeof threads);
  std::memcpy(properties->maxGridSize, blocks, sizeof blocks);
  properties->major = 9;
  properties->multiProcessorCount = kMultiprocessors;
  properties->l2CacheSize = kL2Bytes;
  properties->persistingL2CacheMaxSize = kMostPersistingBytes;
  properties->accessPolicyMaxWindowSize = kLargestWindow;
  properties->maxThreadsPerMultiProcessor = kThreadsOfMultiprocessor;
  properties->maxBlocksPerMultiProcessor = 32;
  properties->sharedMemPerMultiprocessor = kSharedBytesOfMultiprocessor;
  properties->sharedMemPerBlockOptin = kSharedBytesOfBlock;
  properties->regsPerMultiprocessor = kRegisters;
  properties->unifiedAddressing = 1;
  properties->concurrentKernels = 1;
  properties->asyncEngineCount = 3;
  properties->memoryBusWidth = 6144;
  properties->pciBusID = number + 1;
  properties->clusterLaunch = 1;
  properties->cooperativeLaunch = 1;
  return cudaSuccess;
}

CUDA_CALL cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int number) {
  if (!exists(number)) return fail(cudaErrorInvalidDevice, "cudaDeviceGetAttribute");
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrMultiProcessorCount: *value = kMultiprocessors; break;
    case cudaDevAttrL2CacheSize: *value = kL2Bytes; break;
    case cudaDevAttrMaxPersistingL2CacheSize: *value = kMostPersistingBytes; break;
    case cudaDevAttrMaxAccessPolicyWindowSize: *value = kLargestWindow; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = kSharedBytesOfBlock; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = kThreadsOfMultiprocessor; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = kThreadsOfBlock; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrClockRate: *value = 1980000; break;
    case cudaDevAttrMemoryClockRate: *value = 3201000; break;
    default: *value = 0;  // a feature that the machine does not have
  }
  return cudaSuccess;
}

CUDA_CALL cudaDeviceCanAccessPeer(int *can, int number, int peer) {
  *can = number != peer;
  return cudaSuccess;
}

CUDA_CALL cudaDeviceEnablePeerAccess(int peer, unsigned) {
  Lock lock;
  if (!exists(peer) || peer == current) return fail(cudaErrorInvalidDevice, "cudaDeviceEnablePeerAccess");
  bool &reaches = devices[current].reaches[peer];
  if (reaches) return fail(cudaErrorPeerAccessAlreadyEnabled, "cudaDeviceEnablePeerAccess");
  reaches = true;
  return cudaSuccess;
}

CUDA_CALL cudaDeviceGetPCIBusId(char *text, int size, int number) {
  std::snprintf(text, size, "0000:%02x:00.0", number + 1);
  return cudaSuccess;
}

CUDA_CALL cudaDeviceGetLimit(size_t *value, cudaLimit limit) {
  if (limit != cudaLimitPersistingL2CacheSize) return fail(cudaErrorUnsupportedLimit, "cudaDeviceGetLimit");
  Lock lock;
  *value = devices[current].persisting_l2;
  return cudaSuccess;
}

CUDA_CALL cudaDeviceSetLimit(cudaLimit limit, size_t value) {
  if (limit != cudaLimitPersistingL2CacheSize) return fail(cudaErrorUnsupportedLimit, "cudaDeviceSetLimit");
  if (value > kMostPersistingBytes) return fail(cudaErrorInvalidValue, "more persisting L2 than the device has");
  Lock lock;
  devices[current].persisting_l2 = value;
  return cudaSuccess;
}

CUDA_CALL cudaCtxResetPersistingL2Cache() { return cudaSuccess; }

CUDA_CALL cudaProfilerStart() { return cudaSuccess; }

CUDA_CALL cudaProfilerStop() { return cudaSuccess; }

/// Changes the memory of a device; what is allocated stays.
CONTROL void software_gpu_set_memory(int number, size_t bytes) {
  Lock lock;
  devices[number].memory = bytes;
}

/// Lets a kernel of a device fail: 1 is the next one that is enqueued, captured or not.
CONTROL void software_gpu_fail_kernel(int number, long long from_now) {
  Lock lock;
  devices[number].failing_kernel = devices[number].kernels + from_now;
}

/// Lets the launch of a kernel fail, for which the device has no resources; what is enqueued is not harmed.
CONTROL void software_gpu_refuse_kernel(int number, long long from_now) {
  Lock lock;
  devices[number].refused_kernel = devices[number].kernels + from_now;
}

/// Makes a failed device work again, which no real one does without a new process, and calls off a failure to come.
CONTROL void software_gpu_repair(int number) {
  Lock lock;
  devices[number].error = cudaSuccess;
  devices[number].failing_kernel = devices[number].refused_kernel = -1;
}

/// Lets a device's streams stand still, or go on.
CONTROL void software_gpu_hold(int number, int held) {
  Lock lock;
  devices[number].held = held != 0;
  lock.notify();
}
