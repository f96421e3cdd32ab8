// RETURN_IF_ERROR and ASSIGN_OR_RETURN for absl::Status: Debian 12's Abseil predates its own.
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define QSERVE_CONCAT_INNER(a, b) a##b
#define QSERVE_CONCAT(a, b) QSERVE_CONCAT_INNER(a, b)

// Returns from the enclosing function if `expression` (an absl::Status) is an error.
#define RETURN_IF_ERROR(expression)                                                           \
  do {                                                                                        \
    if (absl::Status qserve_status = (expression); !qserve_status.ok()) return qserve_status; \
  } while (false)

// ASSIGN_OR_RETURN(auto value, F()): value of an absl::StatusOr, or return of its error.
#define ASSIGN_OR_RETURN(declaration, expression) \
  QSERVE_ASSIGN_OR_RETURN(QSERVE_CONCAT(qserve_status_or_, __LINE__), declaration, expression)

#define QSERVE_ASSIGN_OR_RETURN(temporary, declaration, expression) \
  auto temporary = (expression);                                    \
  if (!temporary.ok()) return std::move(temporary).status();        \
  declaration = *std::move(temporary)
