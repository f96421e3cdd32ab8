#include "worker/exec/agreement.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "common/status_macros.h"

namespace qserve::worker::exec {
namespace {

std::string ToBytes(uint64_t value) {
  return {reinterpret_cast<const char*>(&value), sizeof(value)};
}

// What was gathered came from another process: its size is checked.
absl::StatusOr<uint64_t> FromBytes(const std::string& bytes) {
  uint64_t value = 0;
  if (bytes.size() != sizeof(value))
    return absl::DataLossError("a rank sent something else than a number");
  std::memcpy(&value, bytes.data(), sizeof(value));
  return value;
}

// Every rank's value on rank 0, an answer of rank 0 on every rank.
absl::StatusOr<std::string> AskRankZero(
    comm::HostGroup& group, uint64_t value,
    const std::function<std::string(const std::vector<uint64_t>& values)>& answer) {
  ASSIGN_OR_RETURN(const std::vector<std::string> gathered, group.Gather(ToBytes(value)));
  if (group.rank() != 0) return group.ReceiveBroadcast();
  std::vector<uint64_t> values;
  for (const std::string& bytes : gathered) {
    ASSIGN_OR_RETURN(values.emplace_back(), FromBytes(bytes));
  }
  std::string text = answer(values);
  RETURN_IF_ERROR(group.Broadcast(text));
  return text;
}

}  // namespace

absl::StatusOr<int64_t> AgreeOnMinimum(comm::HostGroup& group, int64_t value) {
  ASSIGN_OR_RETURN(
      const std::string bytes,
      AskRankZero(group, static_cast<uint64_t>(value), [](const std::vector<uint64_t>& values) {
        const auto less = [](uint64_t a, uint64_t b) {
          return static_cast<int64_t>(a) < static_cast<int64_t>(b);
        };
        return ToBytes(*std::min_element(values.begin(), values.end(), less));
      }));
  ASSIGN_OR_RETURN(const uint64_t smallest, FromBytes(bytes));
  return static_cast<int64_t>(smallest);
}

absl::Status RequireEqual(comm::HostGroup& group, std::string_view what, uint64_t value) {
  ASSIGN_OR_RETURN(const std::string differing,
                   AskRankZero(group, value, [](const std::vector<uint64_t>& values) {
                     std::string ranks;
                     for (size_t rank = 1; rank < values.size(); ++rank) {
                       if (values[rank] != values[0])
                         ranks += fmt::format("{}{}", ranks.empty() ? "" : ", ", rank);
                     }
                     return ranks;
                   }));
  if (differing.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      fmt::format("the {} differs between rank 0 and rank {}", what, differing));
}

}  // namespace qserve::worker::exec
