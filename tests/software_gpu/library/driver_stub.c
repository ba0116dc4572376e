/* libcuda.so.1 without a driver: the symbols that torch and triton link to. torch asks cuInit and the state of the
   primary context and whether there is a current one, which are answered; all else is CUDA_ERROR_NOT_SUPPORTED. */

#define NOT_SUPPORTED 801
#define STUB(name) int name(void) { return NOT_SUPPORTED; }

int cuInit(void) { return 0; }
int cuDevicePrimaryCtxGetState(void) { return 0; }

int cuCtxGetCurrent(void **context) {
  static char some;
  *context = &some;
  return 0;
}

STUB(cuDriverGetVersion)
STUB(cuDeviceGet)
STUB(cuDeviceGetCount)
STUB(cuDeviceGetAttribute)
STUB(cuDeviceGetName)
STUB(cuDevicePrimaryCtxRetain)
STUB(cuCtxGetDevice)
STUB(cuCtxSetCurrent)
STUB(cuModuleLoadData)
STUB(cuModuleLoadDataEx)
STUB(cuModuleGetFunction)
STUB(cuModuleUnload)
STUB(cuLaunchKernel)
STUB(cuLaunchKernelEx)
STUB(cuLaunchCooperativeKernel)
STUB(cuFuncGetAttribute)
STUB(cuFuncSetAttribute)
STUB(cuFuncSetCacheConfig)
STUB(cuOccupancyMaxActiveBlocksPerMultiprocessor)
STUB(cuOccupancyMaxActiveClusters)
STUB(cuGetErrorString)
STUB(cuGetErrorName)
STUB(cuGetProcAddress)
STUB(cuGetProcAddress_v2)
STUB(cuGetExportTable)
STUB(cuLinkCreate_v2)
STUB(cuLinkAddData_v2)
STUB(cuLinkComplete)
STUB(cuLinkDestroy)
STUB(cuTensorMapEncodeTiled)
STUB(cuTensorMapReplaceAddress)
STUB(cuMemGetAddressRange)
STUB(cuMemGetAddressRange_v2)
STUB(cuPointerGetAttribute)
STUB(cuStreamWriteValue32)
STUB(cuStreamWriteValue32_v2)
STUB(cuStreamWaitValue32_v2)
