// See safetensors_header.h: {"__metadata__": {string: string}, name: {"dtype": string, "shape":
// [..], "data_offsets": [begin, end]}}.
#include "worker/checkpoint/safetensors_header.h"

#include <unordered_set>

#include <fmt/format.h>

#include "worker/checkpoint/json_text.h"

namespace qserve::worker::checkpoint {
namespace {

constexpr size_t kMaxTensors = 1'000'000;
constexpr size_t kMaxRank = 8;
constexpr size_t kMaxNameBytes = 1024;

class HeaderSax : public nlohmann::json_sax<nlohmann::json> {
 public:
  std::vector<TensorEntry> TakeTensors() { return std::move(tensors_); }
  const std::string& error() const { return error_; }

  bool null() override { return Misplaced(); }
  bool boolean(bool) override { return Misplaced(); }
  bool number_integer(number_integer_t) override { return Misplaced(); }  // negative: no size is
  bool number_float(number_float_t, const string_t&) override { return Misplaced(); }
  bool binary(binary_t&) override { return Misplaced(); }

  bool number_unsigned(number_unsigned_t value) override {
    if (value > uint64_t{INT64_MAX}) return Misplaced();
    const auto number = static_cast<int64_t>(value);
    if (place_ == Place::kShape && Current().shape.size() < kMaxRank) {
      Current().shape.push_back(number);
      return true;
    }
    if (place_ == Place::kOffsets && offset_count_ < 2) {
      (offset_count_++ == 0 ? Current().begin : Current().end) = number;
      return true;
    }
    return Misplaced();
  }

  bool string(string_t& value) override {
    if (place_ == Place::kMetadata) return true;
    if (place_ != Place::kTensor || field_ != Field::kDtype) return Misplaced();
    const std::optional<Dtype> dtype = ParseDtype(value);
    if (!dtype)
      return Fail(fmt::format("tensor {}: unknown dtype \"{}\"", Name(), Printable(value)));
    Current().dtype = *dtype;
    return true;
  }

  bool start_object(size_t) override {
    if (place_ == Place::kOutside) {
      place_ = Place::kRoot;
    } else if (place_ == Place::kRoot) {
      place_ = in_metadata_ ? Place::kMetadata : Place::kTensor;
    } else {
      return Misplaced();
    }
    return true;
  }

  bool end_object() override {
    if (place_ == Place::kTensor && fields_ != (kSawDtype | kSawShape | kSawOffsets)) {
      return Fail(fmt::format("tensor {}: dtype, shape and data_offsets are required", Name()));
    }
    place_ = place_ == Place::kRoot ? Place::kOutside : Place::kRoot;
    return true;
  }

  bool start_array(size_t) override {
    if (place_ != Place::kTensor || field_ == Field::kDtype) return Misplaced();
    place_ = field_ == Field::kShape ? Place::kShape : Place::kOffsets;
    return true;
  }

  bool end_array() override {
    if (place_ == Place::kOffsets && offset_count_ != 2) {
      return Fail(fmt::format("tensor {}: data_offsets must be two numbers", Name()));
    }
    place_ = Place::kTensor;
    return true;
  }

  bool key(string_t& name) override {
    if (place_ == Place::kRoot) return StartTensor(name);
    if (place_ == Place::kMetadata) return true;
    if (name == "dtype") return StartField(Field::kDtype, kSawDtype, name);
    if (name == "shape") return StartField(Field::kShape, kSawShape, name);
    if (name == "data_offsets") return StartField(Field::kOffsets, kSawOffsets, name);
    return Fail(fmt::format("tensor {}: unknown member \"{}\"", Name(), Printable(name)));
  }

  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    return Fail(fmt::format("the header is not JSON from byte {} on", position));
  }

 private:
  enum class Place { kOutside, kRoot, kMetadata, kTensor, kShape, kOffsets };
  enum class Field { kDtype, kShape, kOffsets };
  static constexpr unsigned kSawDtype = 1, kSawShape = 2, kSawOffsets = 4;

  TensorEntry& Current() { return tensors_.back(); }
  std::string Name() const { return tensors_.empty() ? "?" : Printable(tensors_.back().name); }

  bool StartTensor(const std::string& name) {
    if (name.empty() || name.size() > kMaxNameBytes) {
      return Fail(fmt::format("a tensor's name has {} bytes, from 1 to {} are allowed", name.size(),
                              kMaxNameBytes));
    }
    if (!names_.insert(name).second)
      return Fail(fmt::format("tensor {} stands twice", Printable(name)));
    in_metadata_ = name == "__metadata__";
    if (in_metadata_) return true;
    if (tensors_.size() == kMaxTensors)
      return Fail(fmt::format("more than {} tensors", kMaxTensors));
    tensors_.emplace_back().name = name;
    fields_ = 0;
    offset_count_ = 0;
    return true;
  }

  bool StartField(Field field, unsigned bit, const std::string& name) {
    if ((fields_ & bit) != 0) return Fail(fmt::format("tensor {}: {} stands twice", Name(), name));
    fields_ |= bit;
    field_ = field;
    return true;
  }

  bool Misplaced() {
    return Fail(
        fmt::format("the header does not have the form of safetensors near tensor {}", Name()));
  }
  bool Fail(std::string why) {
    error_ = std::move(why);
    return false;
  }

  Place place_ = Place::kOutside;
  Field field_ = Field::kDtype;
  bool in_metadata_ = false;
  unsigned fields_ = 0;
  int offset_count_ = 0;
  std::vector<TensorEntry> tensors_;
  std::unordered_set<std::string> names_;
  std::string error_;
};

}  // namespace

absl::StatusOr<std::vector<TensorEntry>> ParseSafetensorsHeader(std::string_view header) {
  HeaderSax sax;
  if (!nlohmann::json::sax_parse(header.begin(), header.end(), &sax)) {
    return absl::InvalidArgumentError(sax.error());
  }
  return sax.TakeTensors();
}

}  // namespace qserve::worker::checkpoint
