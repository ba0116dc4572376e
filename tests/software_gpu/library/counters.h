// Counts of the calls that the program made, by device. A test reads them before and after a request.
//
// A call made while its stream is captured counts as a captured operation and as nothing else: it is no work yet.
#pragma once

#include <cstddef>

#define SOFTWARE_GPU_COUNTERS(COUNTER)                                                                       \
  COUNTER(kernel_launches)                                                                                   \
  COUNTER(kernels_in_window) /* launched or captured on a stream with an access policy window */             \
  COUNTER(graph_launches)                                                                                    \
  COUNTER(captured_operations)                                                                               \
  COUNTER(event_records)                                                                                     \
  COUNTER(event_waits) /* by a stream */                                                                     \
  COUNTER(event_queries)                                                                                     \
  COUNTER(event_synchronizations) /* waits of the host, as the next two */                                   \
  COUNTER(stream_synchronizations)                                                                           \
  COUNTER(device_synchronizations)                                                                           \
  COUNTER(copies_host_to_device)                                                                             \
  COUNTER(copies_device_to_host)                                                                             \
  COUNTER(copies_within_device)                                                                              \
  COUNTER(copies_between_devices) /* on the device of the stream that copies */                              \
  COUNTER(copies_within_host)                                                                                \
  COUNTER(bytes_host_to_device)                                                                              \
  COUNTER(bytes_device_to_host)                                                                              \
  COUNTER(bytes_within_device)                                                                               \
  COUNTER(bytes_between_devices)                                                                             \
  COUNTER(bytes_within_host)                                                                                 \
  COUNTER(memsets)                                                                                           \
  COUNTER(allocations)                                                                                       \
  COUNTER(frees)                                                                                             \
  COUNTER(host_allocations)                                                                                  \
  COUNTER(allocated_bytes)      /* now */                                                                    \
  COUNTER(peak_allocated_bytes) /* since the start or the last reset */

enum class Counter {
#define SOFTWARE_GPU_NAME(name) name,
  SOFTWARE_GPU_COUNTERS(SOFTWARE_GPU_NAME)
#undef SOFTWARE_GPU_NAME
      how_many
};

/// Adds to a counter of a device; the scheduler's lock is held.
void count(Counter counter, int device, long long by = 1);

long long counted(Counter counter, int device);
