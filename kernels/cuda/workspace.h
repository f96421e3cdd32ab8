// Device memory that operations need between their kernels: one buffer a purpose, as large as the
// largest use so far. Grows while the first, largest steps run at start-up; afterwards nothing is
// allocated. Used by CudaBackend.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/cuda/arena.h"
#include "kernels/cuda/step_runner.h"

namespace qserve::kernels::cuda {

class Workspace {
 public:
  // All must outlive it.
  Workspace(Runtime* runtime, Arena* arena, StepRunner* runner)
      : runtime_(runtime), arena_(arena), runner_(runner) {}
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  // At least `bytes` for `name`; zeroed when allocated, later what the last user left. Null, and
  // the failure latched, if there is no memory, or a step that is being recorded would need more
  // than it did when it ran. What was given earlier for the name stays allocated, since recordings
  // may hold it.
  void* Get(std::string_view name, int64_t bytes);

  template <class T>
  T* Get(std::string_view name, int64_t count) {
    return static_cast<T*>(Get(name, count * int64_t{sizeof(T)}));
  }

 private:
  struct Piece {
    void* memory = nullptr;
    int64_t bytes = 0;
  };
  Runtime* const runtime_;
  Arena* const arena_;
  StepRunner* const runner_;
  std::map<std::string, Piece, std::less<>> pieces_;
  std::vector<void*> outgrown_;
};

}  // namespace qserve::kernels::cuda
