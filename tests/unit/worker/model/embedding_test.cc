// Rows of the embedding that are read from their file equal copied ones to the bit: every type, any
// alignment, every shard, given and sampled ids; and what a file does that changes under them.
#include "worker/model/embedding.h"

#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "common/check.h"
#include "kernels/forwarding_backend.h"
#include "tests/fakes/random_model.h"
#include "tests/integration/model_fixture.h"

namespace qserve::worker::model {
namespace {

using checkpoint::Checkpoint;
using checkpoint::Dtype;

constexpr int64_t kColumns = 64;
constexpr const char* kConfig = R"({"architectures": ["LlamaForCausalLM"], "hidden_size": 64,
  "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
  "vocab_size": 100, "max_position_embeddings": 64, "tie_word_embeddings": true})";

// More ids than are read at a time; some twice, some of no rank, some sampled.
std::vector<int32_t> Ids() {
  std::vector<int32_t> ids = {0, 99, 50, 49, 50, 100, 4000, ~0, ~1, ~2};
  for (int32_t i = 0; i < 90; ++i) ids.push_back(i * 37 % 100);
  return ids;
}
constexpr int32_t kSampled[] = {98, 3, 51};

// A CPU that takes its memory for another than the host's.
class CopyingBackend final : public kernels::ForwardingBackend {
 public:
  explicit CopyingBackend(kernels::Backend& inner) : ForwardingBackend(inner), info_(inner.info()) {
    info_.host_memory = false;
  }
  const kernels::DeviceInfo& info() const override { return info_; }

 private:
  kernels::DeviceInfo info_;
};

class EmbeddingTest : public ::testing::Test {
 protected:
  std::string Write(Dtype dtype) {
    const std::string model = folder_.Sub(checkpoint::DtypeName(dtype));
    const absl::Status written = fakes::WriteRandomModel(model, kConfig, {.dtype = dtype});
    QSERVE_CHECK_MSG(written.ok(), written.ToString());
    return model;
  }
  static std::string File(const std::string& model) { return model + "/model.safetensors"; }
  // One blank more behind the header: all tensors begin at odd addresses.
  static void Unalign(const std::string& model) {
    std::string bytes = tests::ReadText(File(model));
    uint64_t length = 0;
    std::memcpy(&length, bytes.data(), sizeof(length));
    bytes.insert(static_cast<size_t>(8 + length), " ");
    ++length;
    std::memcpy(bytes.data(), &length, sizeof(length));
    std::ofstream(File(model), std::ios::binary) << bytes;
  }
  static std::unique_ptr<Checkpoint> Open(const std::string& model) {
    auto checkpoint = Checkpoint::Open(model);
    QSERVE_CHECK_MSG(checkpoint.ok(), checkpoint.status().ToString());
    return *std::move(checkpoint);
  }
  static absl::StatusOr<Embedding> Load(const Checkpoint& checkpoint, kernels::Backend& backend,
                                        int degree, int rank) {
    const auto shard = MakeShard(checkpoint.config(), rank, degree);
    if (!shard.ok()) return shard.status();
    return Embedding::Load(checkpoint, *shard, backend, 2, [](int64_t) {});
  }
  static std::vector<float> LookUp(const Embedding& embedding, kernels::Backend& backend,
                                   kernels::Status* status) {
    const std::vector<int32_t> ids = Ids();
    std::vector<float> out(ids.size() * kColumns, -1.0f);
    *status = backend.Run(0, [&] {
      embedding.LookUp(backend, ids, kSampled, {out.data(), std::ssize(ids), kColumns, kColumns});
    });
    return out;
  }

  tests::TemporaryFolder folder_;
  const std::unique_ptr<kernels::Backend> cpu_ = tests::MakeCpu(2);
};

TEST_F(EmbeddingTest, RowsInTheFileEqualCopiedOnes) {
  for (const Dtype dtype : {Dtype::kF32, Dtype::kF16, Dtype::kBf16}) {
    const std::string model = Write(dtype);
    for (const bool aligned : {true, false}) {
      if (!aligned) Unalign(model);
      const auto checkpoint = Open(model);
      for (const int degree : {1, 2}) {
        for (int rank = 0; rank < degree; ++rank) {
          SCOPED_TRACE(model + (aligned ? "" : ", odd addresses, ") + std::to_string(rank));
          CopyingBackend copying(*cpu_);
          const auto stored = Load(*checkpoint, *cpu_, degree, rank);
          const auto copied = Load(*checkpoint, copying, degree, rank);
          ASSERT_TRUE(stored.ok() && copied.ok()) << stored.status() << copied.status();
          const int64_t rows = MakeShard(checkpoint->config(), rank, degree)->vocab.size();
          EXPECT_EQ(copied->device_bytes(), rows * kColumns * checkpoint::DtypeBytes(dtype));
          EXPECT_LT(stored->device_bytes(), copied->device_bytes());
          kernels::Status a, b;
          EXPECT_EQ(LookUp(*stored, *cpu_, &a), LookUp(*copied, copying, &b));
          EXPECT_TRUE(a.ok() && b.ok()) << a.message() << b.message();
        }
      }
    }
  }
}

// A file that is cut fails the step that wants what is gone, by the tensor's name, and no other.
TEST_F(EmbeddingTest, AFileThatIsCutFailsTheStep) {
  const std::string model = Write(Dtype::kF32);
  const auto embedding = Load(*Open(model), *cpu_, 1, 0);  // the checkpoint is closed again
  ASSERT_TRUE(embedding.ok()) << embedding.status();
  kernels::Status status;
  const std::vector<float> before = LookUp(*embedding, *cpu_, &status);
  EXPECT_TRUE(status.ok()) << status.message();
  const std::string whole = tests::ReadText(File(model));
  std::filesystem::resize_file(File(model), 1000);
  LookUp(*embedding, *cpu_, &status);
  EXPECT_EQ(status.code(), kernels::StatusCode::kDevice);
  EXPECT_NE(status.message().find("model.embed_tokens.weight: the file ends"), std::string::npos)
      << status.message();
  std::ofstream(File(model), std::ios::binary) << whole;
  EXPECT_EQ(LookUp(*embedding, *cpu_, &status), before);
}

// What takes the file's path later is another file: the one that was opened goes on being read.
TEST_F(EmbeddingTest, AFileThatIsReplacedIsNotMixedIn) {
  const std::string model = Write(Dtype::kF32);
  const auto checkpoint = Open(model);
  const auto embedding = Load(*checkpoint, *cpu_, 1, 0);
  ASSERT_TRUE(embedding.ok()) << embedding.status();
  kernels::Status status;
  const std::vector<float> before = LookUp(*embedding, *cpu_, &status);
  const std::string other = File(Write(Dtype::kF16));
  std::filesystem::rename(other, File(model));
  EXPECT_EQ(LookUp(*embedding, *cpu_, &status), before);
  EXPECT_EQ(Load(*checkpoint, *cpu_, 1, 0).status().code(), absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace qserve::worker::model
