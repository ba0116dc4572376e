// The compiled code of a stage: a shared object that AOTInductor made, and the tensor handles that it works on.

#pragma once

#include <dlfcn.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

namespace stage_loop {

using Handle = AtenTensorHandle;

struct DeleteTensor {
  void operator()(Handle handle) const { aoti_torch_delete_tensor_object(handle); }
};
using Owned = std::unique_ptr<AtenTensorOpaque, DeleteTensor>;

// Returns another handle to the same tensor.
inline Owned another(Handle handle) {
  Handle made;
  if (!handle) throw std::logic_error("an input of a stage has no value");
  if (aoti_torch_new_tensor_handle(handle, &made)) throw std::runtime_error("torch made no handle for a tensor");
  return Owned(made);
}

// The C interface of a shared object that AOTInductor made (torch/csrc/inductor/aoti_runtime/interface.h).
struct Code {
  using Create = int32_t (*)(void**, size_t, const char*, const char*);
  using Delete = int32_t (*)(void*);
  using Run = int32_t (*)(void*, Handle*, size_t, Handle*, size_t, void*, void*);

  explicit Code(const char* path) {
    library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) throw std::runtime_error(last_error(path));
    run = reinterpret_cast<Run>(symbol("AOTInductorModelContainerRunSingleThreaded"));
    remove = reinterpret_cast<Delete>(symbol("AOTInductorModelContainerDelete"));
    auto create = reinterpret_cast<Create>(symbol("AOTInductorModelContainerCreateWithDevice"));
    if (create(&container, 1, "cpu", nullptr)) throw std::runtime_error(std::string("cannot start ") + path);
  }
  Code(const Code&) = delete;
  ~Code() {
    if (container) remove(container);  // the library stays loaded: kernels may have left thread-local state behind
  }
  void* symbol(const char* name) {
    void* found = dlsym(library, name);
    if (!found) throw std::runtime_error(last_error(name));
    return found;
  }
  static std::string last_error(const char* what) {
    const char* words = dlerror();
    return words ? words : std::string("cannot load ") + what;
  }

  void* library = nullptr;
  void* container = nullptr;
  Run run = nullptr;
  Delete remove = nullptr;
};

}  // namespace stage_loop
