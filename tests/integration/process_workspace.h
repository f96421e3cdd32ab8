// What tests of the real programs share: a directory of their own with the demo model in it,
// quantized once by the real quantizer.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "tests/integration/process_child.h"

namespace qserve::integration {

class Workspace : public testing::Environment {
 public:
  void SetUp() override {
    directory_ = testing::TempDir() + "qserve_process_" + std::to_string(getpid());
    std::filesystem::create_directories(directory_);
    Child quantize({QSERVE_QUANTIZE, "--model", "deploy/demo-model", "--output", Model(),
                    "--recipe", "rtn-g128"});
    ASSERT_EQ(quantize.ExitStatus(), 0) << quantize.Output();
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }
  static std::string Model() { return directory_ + "/model"; }
  static const std::string& directory() { return directory_; }

 private:
  static inline std::string directory_;
};

}  // namespace qserve::integration
