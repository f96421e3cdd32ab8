// Integers that mean different things must not mix: TypedId<Tag, Rep> is an integer that converts
// to nothing by itself.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

namespace qserve {

template <class Tag, class Rep = int64_t>
class TypedId {
 public:
  using rep = Rep;
  constexpr TypedId() = default;
  constexpr explicit TypedId(Rep value) : value_(value) {}
  constexpr Rep value() const { return value_; }
  friend constexpr auto operator<=>(TypedId, TypedId) = default;
  template <class H>
  friend H AbslHashValue(H state, TypedId id) {
    return H::combine(std::move(state), id.value_);
  }

 private:
  Rep value_{};
};

template <class Tag, class Rep>
std::string ToString(TypedId<Tag, Rep> id) {
  return std::to_string(id.value());
}

}  // namespace qserve

template <class Tag, class Rep>
struct std::hash<qserve::TypedId<Tag, Rep>> {
  size_t operator()(qserve::TypedId<Tag, Rep> id) const noexcept {
    return std::hash<Rep>()(id.value());
  }
};
