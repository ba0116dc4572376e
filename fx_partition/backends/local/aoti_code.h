// The compiled code of a stage: a shared object that AOTInductor made, and the tensor handles that it takes.

#pragma once

#include <dlfcn.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

namespace stage_loop {

using Handle = AtenTensorHandle;

// The C interface of a shared object that AOTInductor made (torch/csrc/inductor/aoti_runtime/interface.h).
struct Code {
  using Create = int32_t (*)(void**, size_t, const char*, const char*);
  using Delete = int32_t (*)(void*);
  using Run = int32_t (*)(void*, Handle*, size_t, Handle*, size_t, void*, void*);

  explicit Code(const char* path) {
    library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) throw std::runtime_error(dlerror());
    run = reinterpret_cast<Run>(symbol("AOTInductorModelContainerRunSingleThreaded"));
    remove = reinterpret_cast<Delete>(symbol("AOTInductorModelContainerDelete"));
    auto create = reinterpret_cast<Create>(symbol("AOTInductorModelContainerCreateWithDevice"));
    if (create(&container, 1, "cpu", nullptr)) throw std::runtime_error(std::string("cannot start ") + path);
  }
  Code(const Code&) = delete;
  ~Code() {
    if (container) remove(container);  // the library stays: kernels may have left thread-local state behind
  }
  void* symbol(const char* name) {
    void* found = dlsym(library, name);
    if (!found) throw std::runtime_error(dlerror());
    return found;
  }

  void* library = nullptr;
  void* container = nullptr;
  Run run = nullptr;
  Delete remove = nullptr;
};

}  // namespace stage_loop
