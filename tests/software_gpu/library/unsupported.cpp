// Calls that torch refers to and the machine does not have. Each is an error that names it.
#include "errors.h"

#define UNSUPPORTED(name, ...) \
  CUDA_CALL name(__VA_ARGS__) { return fail(cudaErrorNotSupported, "the software GPU has no " #name); }

UNSUPPORTED(cudaGraphAddNode, cudaGraphNode_t *, cudaGraph_t, const cudaGraphNode_t *, const cudaGraphEdgeData *,
            size_t, cudaGraphNodeParams *)
UNSUPPORTED(cudaGraphConditionalHandleCreate, cudaGraphConditionalHandle *, cudaGraph_t, unsigned, unsigned)
UNSUPPORTED(cudaGraphNodeGetDependencies, cudaGraphNode_t, cudaGraphNode_t *, cudaGraphEdgeData *, size_t *)
UNSUPPORTED(cudaStreamBeginCaptureToGraph, cudaStream_t, cudaGraph_t, const cudaGraphNode_t *,
            const cudaGraphEdgeData *, size_t, cudaStreamCaptureMode)
UNSUPPORTED(cudaDeviceGetDefaultMemPool, cudaMemPool_t *, int)
UNSUPPORTED(cudaMemPoolGetAttribute, cudaMemPool_t, cudaMemPoolAttr, void *)
UNSUPPORTED(cudaMemPoolSetAttribute, cudaMemPool_t, cudaMemPoolAttr, void *)
UNSUPPORTED(cudaMemPoolSetAccess, cudaMemPool_t, const cudaMemAccessDesc *, size_t)
UNSUPPORTED(cudaMemPoolTrimTo, cudaMemPool_t, size_t)
UNSUPPORTED(cudaMallocAsync, void **, size_t, cudaStream_t)
UNSUPPORTED(cudaFreeAsync, void *, cudaStream_t)
UNSUPPORTED(cudaIpcCloseMemHandle, void *)
UNSUPPORTED(cudaIpcGetEventHandle, cudaIpcEventHandle_t *, cudaEvent_t)
UNSUPPORTED(cudaIpcGetMemHandle, cudaIpcMemHandle_t *, void *)
UNSUPPORTED(cudaIpcOpenEventHandle, cudaEvent_t *, cudaIpcEventHandle_t)
UNSUPPORTED(cudaIpcOpenMemHandle, void **, cudaIpcMemHandle_t, unsigned)
UNSUPPORTED(cudaLibraryLoadData, cudaLibrary_t *, const void *, cudaJitOption *, void **, unsigned,
            cudaLibraryOption *, void **, unsigned)
UNSUPPORTED(cudaLibraryGetKernel, cudaKernel_t *, cudaLibrary_t, const char *)
UNSUPPORTED(cudaLibraryUnload, cudaLibrary_t)
UNSUPPORTED(cudaMemcpyToSymbol, const void *, const void *, size_t, size_t, cudaMemcpyKind)
UNSUPPORTED(cudaGetSymbolAddress, void **, const void *)

namespace {

constexpr int kDriverNotSupported = 801;  // CUDA_ERROR_NOT_SUPPORTED

int no_driver_call(...) { return kDriverNotSupported; }

}  // namespace

/// Whatever function of the driver is asked for, it says that it is not supported.
CUDA_CALL cudaGetDriverEntryPointByVersion(const char *, void **function, unsigned, unsigned long long,
                                           cudaDriverEntryPointQueryResult *result) {
  *function = reinterpret_cast<void *>(no_driver_call);
  if (result) *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
