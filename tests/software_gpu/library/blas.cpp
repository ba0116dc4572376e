// Matrix products of cuBLAS, by three loops. Matrices are in the order of columns, as in BLAS.
#include <cuda_runtime_api.h>
#include <library_types.h>

#include <utility>
#include <vector>

#include "elements.h"
#include "kernels.h"
#include "scheduler.h"

namespace {

constexpr int kDone = 0, kNotSupported = 15, kExecutionFailed = 13;

struct Handle {
  cudaStream_t stream;
};

struct Matrix {
  const char *address;
  Dtype dtype;
  bool transposed;
  long long leading, stride;  // elements from a column to the next, and from a matrix of the batch to the next

  size_t offset(long long batch, int row, int column) const {
    long long within = transposed ? column + row * leading : row + column * leading;
    return static_cast<size_t>(batch * stride + within) * size_of(dtype);
  }
};

struct Product {
  int rows, columns, depth, batch;
  double alpha, beta;
  Matrix a, b, c;
};

bool dtype_of(int type, Dtype *dtype) {
  switch (type) {
    case CUDA_R_32F: *dtype = Dtype::f32; return true;
    case CUDA_R_16F: *dtype = Dtype::f16; return true;
    case CUDA_R_16BF: *dtype = Dtype::bf16; return true;
    case CUDA_R_64F: *dtype = Dtype::f64; return true;
    default: return false;
  }
}

/// Returns all elements of a matrix of the batch, row by row.
std::vector<float> elements(const Matrix &matrix, long long batch, int rows, int columns) {
  std::vector<float> values;
  values.reserve(static_cast<size_t>(rows) * columns);
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < columns; j++)
      values.push_back(static_cast<float>(load(matrix.address + matrix.offset(batch, i, j), matrix.dtype)));
  return values;
}

bool check_matrix(const Matrix &matrix, const Product &product, int rows, int columns, int device) {
  if (rows == 0 || columns == 0 || product.batch == 0) return true;
  size_t bytes = matrix.offset(product.batch - 1, rows - 1, columns - 1) + size_of(matrix.dtype);
  return check_access("gemm", device, matrix.address, bytes);
}

void multiply(const Product &p, int device) {
  if (!check_matrix(p.a, p, p.rows, p.depth, device) || !check_matrix(p.b, p, p.depth, p.columns, device) ||
      !check_matrix(p.c, p, p.rows, p.columns, device))
    return;
  for (long long batch = 0; batch < p.batch; batch++) {
    std::vector<float> a = elements(p.a, batch, p.rows, p.depth), b = elements(p.b, batch, p.depth, p.columns);
    for (int i = 0; i < p.rows; i++) {
      std::vector<float> row(p.columns);
      for (int k = 0; k < p.depth; k++) {
        float left = a[static_cast<size_t>(i) * p.depth + k];
        const float *right = &b[static_cast<size_t>(k) * p.columns];
        for (int j = 0; j < p.columns; j++) row[j] += left * right[j];
      }
      for (int j = 0; j < p.columns; j++) {
        char *to = const_cast<char *>(p.c.address) + p.c.offset(batch, i, j);
        double before = p.beta == 0 ? 0 : p.beta * load(to, p.c.dtype);  // with beta 0 the memory may hold anything
        store(to, p.c.dtype, p.alpha * row[j] + before);
      }
    }
  }
}

int enqueue_product(void *handle, const Product &product) {
  Lock lock;
  Stream *stream = stream_of(static_cast<Handle *>(handle)->stream);
  int device = stream->device;
  Work work = {.run = [=] { multiply(product, device); }, .kernel = "gemm"};
  return submit_kernel(lock, stream, std::move(work)) == cudaSuccess ? kDone : kExecutionFailed;
}

int gemm(void *handle, int ta, int tb, int m, int n, int k, double alpha, const void *a, int a_type, int lda,
         long long a_stride, const void *b, int b_type, int ldb, long long b_stride, double beta, void *c, int c_type,
         int ldc, long long c_stride, int batch) {
  Dtype types[3];
  if (!dtype_of(a_type, &types[0]) || !dtype_of(b_type, &types[1]) || !dtype_of(c_type, &types[2])) return kNotSupported;
  return enqueue_product(handle, {m, n, k, batch, alpha, beta,
                                  {static_cast<const char *>(a), types[0], ta != 0, lda, a_stride},
                                  {static_cast<const char *>(b), types[1], tb != 0, ldb, b_stride},
                                  {static_cast<const char *>(c), types[2], false, ldc, c_stride}});
}

}  // namespace

extern "C" {

int cublasCreate_v2(void **handle) {
  *handle = new Handle{nullptr};
  return kDone;
}

int cublasDestroy_v2(void *handle) {
  delete static_cast<Handle *>(handle);
  return kDone;
}

int cublasSetStream_v2(void *handle, cudaStream_t stream) {
  static_cast<Handle *>(handle)->stream = stream;
  return kDone;
}

int cublasSetWorkspace_v2(void *, void *, size_t) { return kDone; }
int cublasSetMathMode(void *, int) { return kDone; }
int cublasSetPointerMode_v2(void *, int) { return kDone; }
int cublasSetSmCountTarget(void *, int) { return kDone; }

int cublasGetMathMode(void *, int *mode) {
  *mode = 0;
  return kDone;
}

int cublasGetPointerMode_v2(void *, int *mode) {
  *mode = 0;
  return kDone;
}

int cublasSgemm_v2(void *handle, int ta, int tb, int m, int n, int k, const float *alpha, const float *a, int lda,
                   const float *b, int ldb, const float *beta, float *c, int ldc) {
  return gemm(handle, ta, tb, m, n, k, *alpha, a, CUDA_R_32F, lda, 0, b, CUDA_R_32F, ldb, 0, *beta, c, CUDA_R_32F, ldc,
              0, 1);
}

int cublasSgemmStridedBatched(void *handle, int ta, int tb, int m, int n, int k, const float *alpha, const float *a,
                              int lda, long long a_stride, const float *b, int ldb, long long b_stride,
                              const float *beta, float *c, int ldc, long long c_stride, int batch) {
  return gemm(handle, ta, tb, m, n, k, *alpha, a, CUDA_R_32F, lda, a_stride, b, CUDA_R_32F, ldb, b_stride, *beta, c,
              CUDA_R_32F, ldc, c_stride, batch);
}

int cublasGemmEx(void *handle, int ta, int tb, int m, int n, int k, const void *alpha, const void *a, int a_type,
                 int lda, const void *b, int b_type, int ldb, const void *beta, void *c, int c_type, int ldc, int,
                 int) {
  return gemm(handle, ta, tb, m, n, k, *static_cast<const float *>(alpha), a, a_type, lda, 0, b, b_type, ldb, 0,
              *static_cast<const float *>(beta), c, c_type, ldc, 0, 1);
}

int cublasSgemmEx(void *handle, int ta, int tb, int m, int n, int k, const float *alpha, const void *a, int a_type,
                  int lda, const void *b, int b_type, int ldb, const float *beta, void *c, int c_type, int ldc) {
  return cublasGemmEx(handle, ta, tb, m, n, k, alpha, a, a_type, lda, b, b_type, ldb, beta, c, c_type, ldc, 0, 0);
}

int cublasGemmStridedBatchedEx(void *handle, int ta, int tb, int m, int n, int k, const void *alpha, const void *a,
                               int a_type, int lda, long long a_stride, const void *b, int b_type, int ldb,
                               long long b_stride, const void *beta, void *c, int c_type, int ldc, long long c_stride,
                               int batch, int, int) {
  return gemm(handle, ta, tb, m, n, k, *static_cast<const float *>(alpha), a, a_type, lda, a_stride, b, b_type, ldb,
              b_stride, *static_cast<const float *>(beta), c, c_type, ldc, c_stride, batch);
}

}  // extern "C"
