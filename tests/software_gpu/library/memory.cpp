#include "memory.h"

#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

#include "capture.h"
#include "counters.h"
#include "devices.h"
#include "errors.h"
#include "scheduler.h"

namespace {

constexpr size_t kAlignment = 512;

struct Block {
  size_t bytes;
  int owner;
};

std::map<const char *, Block> blocks;  // by their first byte

/// Returns the block that holds a byte, or null.
const std::pair<const char *const, Block> *block_with(const void *address) {
  const char *byte = static_cast<const char *>(address);
  auto next = blocks.upper_bound(byte);
  if (next == blocks.begin()) return nullptr;
  auto found = std::prev(next);
  return byte < found->first + found->second.bytes ? &*found : nullptr;
}

char *allocate(size_t bytes, int owner) {
  char *block = static_cast<char *>(std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment));
  // As floating point numbers these bytes are NaN: what is read before it was written is seen.
  std::memset(block, 0xff, bytes);
  blocks[block] = {bytes, owner};
  return block;
}

/// Waits for all devices, as a free does, and forgets a block.
void release(Lock &lock, void *address) {
  for (int i = 0; i < settings().devices; i++) drain_device(lock, i);
  blocks.erase(static_cast<char *>(address));
}

}  // namespace

int owner_of(const void *address) {
  auto *found = block_with(address);
  return found == nullptr ? kPageable : found->second.owner;
}

bool usable(const void *address, size_t bytes, int number) {
  if (bytes == 0) return true;
  auto *found = block_with(address);
  if (found == nullptr || static_cast<const char *>(address) + bytes > found->first + found->second.bytes) return false;
  int owner = found->second.owner;
  return owner == kPinned || owner == number || device(number).reaches[owner];
}

CUDA_CALL cudaMalloc(void **address, size_t bytes) {
  Lock lock;
  *address = nullptr;
  int number = current_device();
  if (forbidden_by_capture("cudaMalloc")) return cudaErrorStreamCaptureUnsupported;
  if (cudaError_t error = check_device(number)) return error;
  size_t used = static_cast<size_t>(counted(Counter::allocated_bytes, number));
  if (used + bytes > device(number).memory)
    return fail(cudaErrorMemoryAllocation, std::to_string(bytes) + " bytes on device " + std::to_string(number));
  *address = allocate(bytes, number);
  count(Counter::allocations, number);
  count(Counter::allocated_bytes, number, static_cast<long long>(bytes));
  log_call("cudaMalloc of %zu bytes", bytes);
  return cudaSuccess;
}

CUDA_CALL cudaFree(void *address) {
  if (address == nullptr) return cudaSuccess;
  Lock lock;
  if (forbidden_by_capture("cudaFree")) return cudaErrorStreamCaptureUnsupported;
  auto *block = block_with(address);
  if (block == nullptr || block->first != address || block->second.owner < 0)
    return fail(cudaErrorInvalidValue, "cudaFree of something else than cudaMalloc returned");
  int number = block->second.owner;
  count(Counter::frees, number);
  count(Counter::allocated_bytes, number, -static_cast<long long>(block->second.bytes));
  release(lock, address);
  std::free(address);
  return check_device(number);
}

CUDA_CALL cudaHostAlloc(void **address, size_t bytes, unsigned) {
  Lock lock;
  if (forbidden_by_capture("cudaHostAlloc")) return cudaErrorStreamCaptureUnsupported;
  *address = allocate(bytes, kPinned);
  count(Counter::host_allocations, current_device());
  return cudaSuccess;
}

CUDA_CALL cudaFreeHost(void *address) {
  Lock lock;
  release(lock, address);
  std::free(address);
  return cudaSuccess;
}

CUDA_CALL cudaHostRegister(void *address, size_t bytes, unsigned) {
  Lock lock;
  blocks[static_cast<char *>(address)] = {bytes, kPinned};
  return cudaSuccess;
}

CUDA_CALL cudaHostUnregister(void *address) {
  Lock lock;
  release(lock, address);
  return cudaSuccess;
}

CUDA_CALL cudaMemGetInfo(size_t *free, size_t *total) {
  Lock lock;
  size_t used = static_cast<size_t>(counted(Counter::allocated_bytes, current_device()));
  *total = device(current_device()).memory;
  *free = *total > used ? *total - used : 0;
  return cudaSuccess;
}

CUDA_CALL cudaPointerGetAttributes(cudaPointerAttributes *attributes, const void *address) {
  Lock lock;
  int owner = owner_of(address);
  std::memset(attributes, 0, sizeof *attributes);
  attributes->type = owner >= 0         ? cudaMemoryTypeDevice
                     : owner == kPinned ? cudaMemoryTypeHost
                                        : cudaMemoryTypeUnregistered;
  attributes->device = owner >= 0 ? owner : current_device();
  attributes->devicePointer = owner == kPageable ? nullptr : const_cast<void *>(address);
  attributes->hostPointer = owner >= 0 ? nullptr : const_cast<void *>(address);
  return cudaSuccess;
}
