// Launches of kernels: by torch's own code through the symbols that nvcc writes into it, and by tests.
//
// A kernel that `kernels.h` does not know is an error that names it: a launch without values would be a wrong result.
#include <cxxabi.h>

#include <cstdlib>
#include <map>
#include <string>

#include "capture.h"
#include "control.h"
#include "counters.h"
#include "devices.h"
#include "errors.h"
#include "kernels.h"
#include "scheduler.h"

namespace {

struct Configuration {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
};

thread_local Configuration pushed;
std::map<const void *, std::string> &kernels() {
  static std::map<const void *, std::string> by_host_function;  // made on first use: torch registers while it is loaded
  return by_host_function;
}

std::string demangled(const std::string &name) {
  int status = 0;
  char *text = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
  std::string result = status == 0 ? text : name;
  std::free(text);
  return result;
}

cudaError_t launch(const void *function, void **arguments, cudaStream_t handle) {
  Lock lock;
  auto found = kernels().find(function);
  std::string name = found == kernels().end() ? "a kernel without a name" : demangled(found->second);
  Task task = task_of(name, arguments);
  if (!task) return fail(cudaErrorNotSupported, "the software GPU has no kernel " + name);
  Stream *stream = stream_of(handle);
  int device = stream->device;
  return submit_kernel(lock, stream, {.run = [=] { task(device); }, .kernel = name});
}

}  // namespace

cudaError_t submit_kernel(Lock &lock, Stream *stream, Work work) {
  if (cudaError_t error = check_device(stream->device)) return error;
  if (stream->device != current_device())
    return fail(cudaErrorInvalidResourceHandle, "a launch of " + work.kernel + " on a stream of another device");
  if (stream->capture == nullptr) {
    count(Counter::kernel_launches, stream->device);
    if (refuses_kernels(stream->device, 1))
      return fail(cudaErrorLaunchOutOfResources, "too many resources requested for launch of " + work.kernel);
  }
  log_call("launch %.120s on stream %p", work.kernel.c_str(), static_cast<void *>(stream));
  submit(lock, stream, std::move(work));
  return cudaSuccess;
}

extern "C" {

void **__cudaRegisterFatBinary(void *) {
  static void *handle[1];
  return handle;
}

void __cudaRegisterFatBinaryEnd(void **) {}

void __cudaUnregisterFatBinary(void **) {}

char __cudaInitModule(void **) { return 1; }

void __cudaRegisterVar(void **, char *, char *, const char *, int, size_t, int, int) {}

void __cudaRegisterFunction(void **, const char *host, char *, const char *name, int, void *, void *, void *, void *,
                            int *) {
  kernels()[host] = name;
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
  pushed = {grid, block, shared, stream};
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
  *grid = pushed.grid;
  *block = pushed.block;
  *shared = pushed.shared;
  *static_cast<cudaStream_t *>(stream) = pushed.stream;
  return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void *>(function));
  return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3, dim3, void **arguments, size_t, cudaStream_t stream) {
  return launch(kernel, arguments, stream);
}

}  // extern "C"

CUDA_CALL cudaLaunchKernel(const void *function, dim3, dim3, void **arguments, size_t, cudaStream_t stream) {
  return launch(function, arguments, stream);
}

CUDA_CALL cudaLaunchKernelExC(const cudaLaunchConfig_t *configuration, const void *function, void **arguments) {
  return launch(function, arguments, configuration->stream);
}

CUDA_CALL cudaFuncGetAttributes(cudaFuncAttributes *attributes, const void *) {
  *attributes = {};
  attributes->maxThreadsPerBlock = 1024;
  attributes->numRegs = 32;
  attributes->binaryVersion = attributes->ptxVersion = 90;
  return cudaSuccess;
}

CUDA_CALL cudaFuncSetAttribute(const void *, cudaFuncAttribute, int) { return cudaSuccess; }

CUDA_CALL cudaKernelSetAttributeForDevice(cudaKernel_t, cudaFuncAttribute, int, int) { return cudaSuccess; }

CUDA_CALL cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *, int, size_t, unsigned) {
  *blocks = 8;
  return cudaSuccess;
}

/// Launches a kernel that a test gives: `function` runs with `argument` when it is the kernel's turn; null does nothing.
CONTROL int software_gpu_launch(cudaStream_t stream, const char *name, void (*function)(void *), void *argument) {
  Lock lock;
  auto run = [=] {
    if (function != nullptr) function(argument);
  };
  return submit_kernel(lock, stream_of(stream), {.run = run, .kernel = name, .callback = function != nullptr});
}
