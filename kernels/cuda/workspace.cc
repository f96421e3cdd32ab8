#include "kernels/cuda/workspace.h"

#include <algorithm>
#include <functional>

namespace qserve::kernels::cuda {

Workspace::~Workspace() {
  for (const auto& [name, piece] : pieces_) arena_->Free(piece.memory);
  for (void* memory : outgrown_) arena_->Free(memory);
}

void* Workspace::Get(std::string_view name, int64_t bytes) {
  const auto found = pieces_.find(name);
  if (found != pieces_.end() && found->second.bytes >= bytes) return found->second.memory;
  if (runner_->PlacesAreFixed()) {
    runner_->Fail(InvalidArgument("cuda: a recorded step needs more workspace than when it ran"));
    return nullptr;
  }
  // Half as much again, so that steps which grow little by little allocate seldom.
  const int64_t before = found == pieces_.end() ? 0 : found->second.bytes;
  const int64_t size = before == 0 ? bytes : std::max(bytes, before + before / 2);
  StatusOr<void*> memory = arena_->Allocate(size, "workspace");
  if (!memory.ok()) {
    runner_->Fail(memory.status());
    return nullptr;
  }
  StreamHandle const stream = runner_->Issue();
  if (stream == nullptr || !runner_->Check(runtime_->FillAsync(*memory, 0, size, stream), "fill")) {
    arena_->Free(*memory);
    return nullptr;
  }
  if (before > 0) outgrown_.push_back(found->second.memory);
  pieces_[std::string(name)] = {*memory, size};
  return *memory;
}

}  // namespace qserve::kernels::cuda
