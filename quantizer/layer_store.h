// What is finished of a long quantization, kept on disk so that an interrupted one goes on where it
// stopped: the tensors of every finished block and the calibration windows behind the last one. A
// directory beside the output, `.NAME.unfinished-DIGEST`, gone when all is done; the digest is of
// everything that the result depends on, so that another model, text or switch starts anew. Called
// by pipeline.cc; one thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "quantizer/layer_quantizer.h"
#include "worker/checkpoint/output_directory.h"
#include "worker/checkpoint/safetensors_writer.h"

namespace qserve::quantizer {

class LayerStore {
 public:
  // Makes the directory, or finds it with what is finished. Directories of other digests are left
  // alone and named in the log.
  static absl::StatusOr<LayerStore> Open(const std::string& output, uint64_t digest);

  // Blocks 0 .. finished() - 1 are there.
  int64_t finished() const { return finished_; }

  // Keeps a block: `write` appends its tensors, in this order, to the writer; then the windows
  // behind it, which replace those before it.
  template <class Write>
  absl::Status Save(const std::vector<worker::checkpoint::TensorInfo>& tensors,
                    const Streams& streams, const Write& write);

  // Appends the tensors of a finished block to a writer that expects them next.
  absl::Status CopyLayer(int64_t layer, const std::vector<worker::checkpoint::TensorInfo>& tensors,
                         worker::checkpoint::SafetensorsWriter& writer) const;

  // The windows behind the last finished block.
  absl::Status LoadStreams(Streams& streams) const;

  // Deletes everything: the result is complete.
  void Remove() const;

 private:
  explicit LayerStore(std::string path) : path_(std::move(path)) {}
  std::string LayerPath(int64_t layer) const;
  std::string StreamsPath(int64_t layer) const;
  absl::Status SaveStreams(const Streams& streams);

  std::string path_;
  int64_t finished_ = 0;
};

template <class Write>
absl::Status LayerStore::Save(const std::vector<worker::checkpoint::TensorInfo>& tensors,
                              const Streams& streams, const Write& write) {
  namespace ckpt = worker::checkpoint;
  const std::string path = LayerPath(finished_);
  absl::StatusOr<std::unique_ptr<ckpt::OutputDirectory>> directory =
      ckpt::OutputDirectory::Create(path);
  if (!directory.ok()) return directory.status();
  ckpt::SafetensorsWriter writer(**directory, tensors);
  absl::Status status = write(writer);
  if (status.ok()) status = writer.Finish();
  if (status.ok()) status = (*directory)->Commit();
  if (!status.ok()) return status;
  return SaveStreams(streams);
}

}  // namespace qserve::quantizer
