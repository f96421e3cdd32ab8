// See safetensors_writer.h.
#include "worker/checkpoint/safetensors_writer.h"

#include <cstring>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "common/check.h"
#include "common/status_macros.h"

namespace qserve::worker::checkpoint {
namespace {

constexpr size_t kLengthBytes = 8;
constexpr size_t kAlignment =
    64;  // of the data behind the header, so that mapped rows start on cache lines

// Length field and header of the tensors given; names keep their order.
std::string Header(std::span<const TensorInfo> tensors) {
  nlohmann::ordered_json header;
  header["__metadata__"] = {{"format", "pt"}};
  int64_t offset = 0;
  for (const TensorInfo& tensor : tensors) {
    const int64_t end = offset + tensor.bytes();
    header[tensor.name] = {{"dtype", DtypeName(tensor.dtype)},
                           {"shape", tensor.shape},
                           {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.dump();
  text.append((kAlignment - (kLengthBytes + text.size()) % kAlignment) % kAlignment, ' ');
  std::string result;
  for (size_t i = 0; i < kLengthBytes; ++i) {
    result.push_back(static_cast<char>((uint64_t{text.size()} >> (8 * i)) & 0xff));
  }
  return result + text;
}

}  // namespace

int64_t TensorInfo::bytes() const {
  int64_t total = DtypeBytes(dtype);
  for (const int64_t dimension : shape) total *= dimension;
  return total;
}

SafetensorsWriter::SafetensorsWriter(OutputDirectory& directory, std::vector<TensorInfo> tensors,
                                     int64_t max_shard_bytes)
    : directory_(directory), tensors_(std::move(tensors)) {
  int64_t shard_bytes = 0;
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const int64_t bytes = tensors_[i].bytes();
    if (shards_.empty() || (shard_bytes > 0 && shard_bytes + bytes > max_shard_bytes)) {
      shards_.push_back({"", i, i});
      shard_bytes = 0;
    }
    shards_.back().last = i + 1;
    shard_bytes += bytes;
  }
  if (shards_.empty()) shards_.push_back({});
  for (size_t i = 0; i < shards_.size(); ++i) {
    shards_[i].file_name = shards_.size() == 1 ? "model.safetensors"
                                               : fmt::format("model-{:05}-of-{:05}.safetensors",
                                                             i + 1, shards_.size());
  }
}

absl::Status SafetensorsWriter::OpenShard() {
  const Shard& shard = shards_[shard_];
  ASSIGN_OR_RETURN(OutputFile file, OutputFile::Create(fmt::format(
                                        "{}/{}", directory_.temporary_path(), shard.file_name)));
  file_.emplace(std::move(file));
  const std::string header =
      Header(std::span(tensors_).subspan(shard.first, shard.last - shard.first));
  return file_->Write(std::as_bytes(std::span(header)));
}

// Steps over finished tensors (empty ones at once) and closes the shards that end with them.
absl::Status SafetensorsWriter::EndTensors() {
  while (tensor_ < tensors_.size() && written_ == tensors_[tensor_].bytes()) {
    if (!file_) RETURN_IF_ERROR(OpenShard());
    ++tensor_;
    written_ = 0;
    if (tensor_ == shards_[shard_].last) {
      RETURN_IF_ERROR(file_->Close());
      file_.reset();
      ++shard_;
    }
  }
  return absl::OkStatus();
}

absl::Status SafetensorsWriter::Append(const std::string& name, std::span<const std::byte> bytes) {
  RETURN_IF_ERROR(EndTensors());
  QSERVE_CHECK_MSG(tensor_ < tensors_.size() && tensors_[tensor_].name == name, name);
  QSERVE_CHECK_MSG(static_cast<int64_t>(bytes.size()) <= tensors_[tensor_].bytes() - written_,
                   name);
  if (!file_) RETURN_IF_ERROR(OpenShard());
  RETURN_IF_ERROR(file_->Write(bytes));
  written_ += static_cast<int64_t>(bytes.size());
  return EndTensors();
}

absl::Status SafetensorsWriter::Finish() {
  RETURN_IF_ERROR(EndTensors());
  QSERVE_CHECK_MSG(tensor_ == tensors_.size(), "tensors were declared and not written");
  if (tensors_.empty()) {
    RETURN_IF_ERROR(OpenShard());
    RETURN_IF_ERROR(file_->Close());
    file_.reset();
  }
  if (shards_.size() == 1) return absl::OkStatus();
  int64_t total = 0;
  nlohmann::ordered_json map = nlohmann::ordered_json::object();
  for (const Shard& shard : shards_) {
    for (size_t i = shard.first; i < shard.last; ++i) {
      total += tensors_[i].bytes();
      map[tensors_[i].name] = shard.file_name;
    }
  }
  const nlohmann::ordered_json index = {{"metadata", {{"total_size", total}}}, {"weight_map", map}};
  return directory_.WriteFile("model.safetensors.index.json", index.dump(2) + "\n");
}

}  // namespace qserve::worker::checkpoint
