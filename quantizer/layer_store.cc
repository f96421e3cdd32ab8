// See layer_store.h.
#include "quantizer/layer_store.h"

#include <fmt/format.h>

#include <cstring>
#include <filesystem>

#include "common/hashing.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "worker/checkpoint/tensor_set.h"

namespace qserve::quantizer {
namespace {

namespace ckpt = worker::checkpoint;
namespace fs = std::filesystem;

std::string WindowName(const char* stream, size_t window) {
  return fmt::format("{}.{}", stream, window);
}

absl::StatusOr<MatrixF> ReadWindow(const ckpt::TensorSet& tensors, const std::string& name) {
  const std::optional<ckpt::TensorView> view = tensors.Find(name);
  if (!view || view->dtype != ckpt::Dtype::kF32 || view->shape.size() != 2) {
    return absl::InvalidArgumentError(fmt::format("{} is not in the saved state", name));
  }
  MatrixF matrix(view->shape[0], view->shape[1]);
  std::memcpy(matrix.data(), view->data.data(), view->data.size());
  return matrix;
}

bool IsThere(const std::string& path) {
  std::error_code error;
  return fs::is_directory(path, error);
}

}  // namespace

absl::StatusOr<LayerStore> LayerStore::Open(const std::string& output, uint64_t digest) {
  std::error_code error;
  fs::path target = fs::absolute(output, error).lexically_normal();
  if (!target.has_filename()) target = target.parent_path();
  const std::string prefix = fmt::format(".{}.unfinished-", target.filename().string());
  const fs::path path = target.parent_path() / (prefix + HexDigest(digest));
  for (const fs::directory_entry& entry : fs::directory_iterator(target.parent_path(), error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(prefix) && entry.path() != path) {
      LOG_WARN("{} is of an unfinished job with other options; delete it if it is not wanted",
               entry.path().string());
    }
  }
  fs::create_directories(path, error);
  if (error) {
    return absl::ErrnoToStatus(error.value(), fmt::format("cannot create {}", path.string()));
  }
  LayerStore store(path.string());
  // The windows of a block are saved last and those before them deleted after that.
  int64_t layers = 0;
  while (IsThere(store.LayerPath(layers))) ++layers;
  while (layers > 0 && !IsThere(store.StreamsPath(layers - 1))) --layers;
  store.finished_ = layers;
  for (int64_t layer = layers; IsThere(store.LayerPath(layer)); ++layer) {
    fs::remove_all(store.LayerPath(layer), error);
  }
  return store;
}

std::string LayerStore::LayerPath(int64_t layer) const {
  return fmt::format("{}/layer-{}", path_, layer);
}

std::string LayerStore::StreamsPath(int64_t layer) const {
  return fmt::format("{}/windows-{}", path_, layer);
}

absl::Status LayerStore::SaveStreams(const Streams& streams) {
  std::vector<ckpt::TensorInfo> tensors;
  const auto each = [&](const auto& visit) {
    for (size_t w = 0; w < streams.exact.size(); ++w) {
      visit(WindowName("exact", w), streams.exact[w]);
      visit(WindowName("rounded", w), streams.rounded[w]);
    }
  };
  each([&](const std::string& name, const MatrixF& matrix) {
    tensors.push_back({name, ckpt::Dtype::kF32, {matrix.rows(), matrix.cols()}});
  });
  ASSIGN_OR_RETURN(const std::unique_ptr<ckpt::OutputDirectory> directory,
                   ckpt::OutputDirectory::Create(StreamsPath(finished_)));
  ckpt::SafetensorsWriter writer(*directory, tensors);
  absl::Status status;
  each([&](const std::string& name, const MatrixF& matrix) {
    if (!status.ok()) return;
    status = writer.AppendSpan(
        name, std::span<const float>(matrix.data(), static_cast<size_t>(matrix.size())));
  });
  RETURN_IF_ERROR(status);
  RETURN_IF_ERROR(writer.Finish());
  RETURN_IF_ERROR(directory->Commit());
  std::error_code ignored;
  if (finished_ > 0) fs::remove_all(StreamsPath(finished_ - 1), ignored);
  ++finished_;
  return absl::OkStatus();
}

absl::Status LayerStore::CopyLayer(int64_t layer, const std::vector<ckpt::TensorInfo>& tensors,
                                   ckpt::SafetensorsWriter& writer) const {
  ASSIGN_OR_RETURN(const ckpt::TensorSet saved, ckpt::TensorSet::Open(LayerPath(layer)));
  for (const ckpt::TensorInfo& tensor : tensors) {
    const std::optional<ckpt::TensorView> view = saved.Find(tensor.name);
    if (!view || static_cast<int64_t>(view->data.size()) != tensor.bytes()) {
      return absl::InvalidArgumentError(
          fmt::format("{} has no {}: delete that directory to start anew", path_, tensor.name));
    }
    RETURN_IF_ERROR(writer.AppendSpan(tensor.name, view->data));
  }
  return absl::OkStatus();
}

absl::Status LayerStore::LoadStreams(Streams& streams) const {
  ASSIGN_OR_RETURN(const ckpt::TensorSet saved, ckpt::TensorSet::Open(StreamsPath(finished_ - 1)));
  for (size_t w = 0; w < streams.exact.size(); ++w) {
    ASSIGN_OR_RETURN(streams.exact[w], ReadWindow(saved, WindowName("exact", w)));
    ASSIGN_OR_RETURN(streams.rounded[w], ReadWindow(saved, WindowName("rounded", w)));
  }
  return absl::OkStatus();
}

void LayerStore::Remove() const {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

}  // namespace qserve::quantizer
