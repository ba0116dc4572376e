// Memory of devices and of the host, and who may use which.
#pragma once

#include <cstddef>

constexpr int kPageable = -2;  // memory that CUDA knows nothing of
constexpr int kPinned = -1;

/// Returns the device that memory belongs to, or one of the two above; the lock is held.
int owner_of(const void *address);

/// Returns whether all bytes are memory that the kernels of a device may use: its own, pinned, or a peer's.
bool usable(const void *address, size_t bytes, int device);
