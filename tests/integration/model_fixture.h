// What the model tests share: random model directories in a temporary folder, thread groups of
// ranks. Test programs only.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "common/check.h"
#include "kernels/device_factory.h"
#include "tests/fakes/random_model.h"

namespace qserve::tests {

// A folder that is gone with the object.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = ::testing::TempDir() + "qserve_model_XXXXXX";
    QSERVE_CHECK(mkdtemp(pattern.data()) != nullptr);
    path_ = pattern;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  std::string Sub(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

inline std::string ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  QSERVE_CHECK_MSG(file.good(), path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

inline std::unique_ptr<kernels::Backend> MakeCpu(int threads = 1, const std::string& isa = "auto") {
  kernels::StatusOr<std::unique_ptr<kernels::Backend>> backend =
      kernels::CreateBackend({.device = "cpu", .ordinal = 0, .threads = threads, .cpu_isa = isa});
  QSERVE_CHECK_MSG(backend.ok(), backend.status().message());
  return *std::move(backend);
}

// Runs body(rank) on a thread for each rank and waits for all.
inline void OnRanks(int size, const std::function<void(int rank)>& body) {
  std::vector<std::jthread> threads;
  for (int rank = 0; rank < size; ++rank) threads.emplace_back([&body, rank] { body(rank); });
}

}  // namespace qserve::tests
