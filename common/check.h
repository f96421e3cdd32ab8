// Checks of invariants that only a bug of ours can break. Never on anything that a client, a file
// or a peer can cause: those get an absl::Status. A failed check prints where and why to stderr and
// aborts the process.
#pragma once

#include <string_view>

namespace qserve::internal {
[[noreturn]] void CheckFailed(const char* file, int line, const char* condition,
                              std::string_view message);
}  // namespace qserve::internal

#define QSERVE_CHECK(condition)                                            \
  do {                                                                     \
    if (!(condition)) [[unlikely]]                                         \
      ::qserve::internal::CheckFailed(__FILE__, __LINE__, #condition, {}); \
  } while (false)

#define QSERVE_CHECK_MSG(condition, message)                                      \
  do {                                                                            \
    if (!(condition)) [[unlikely]]                                                \
      ::qserve::internal::CheckFailed(__FILE__, __LINE__, #condition, (message)); \
  } while (false)
