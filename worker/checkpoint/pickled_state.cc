// See pickled_state.h. What torch.save writes is read in torch/_utils.py and
// torch/serialization.py.
#include "worker/checkpoint/pickled_state.h"

#include <fmt/format.h>

#include <optional>
#include <set>

#include "common/status_macros.h"
#include "worker/checkpoint/json_text.h"
#include "worker/checkpoint/pickle_machine.h"

namespace qserve::worker::checkpoint {
namespace {

using Kind = PickleNode::Kind;

constexpr std::string_view kDictionary = "collections OrderedDict";
constexpr std::string_view kTensor = "torch._utils _rebuild_tensor_v2";
constexpr std::string_view kParameter = "torch._utils _rebuild_parameter";

struct StorageType {
  std::string_view global;
  Dtype dtype;
};
constexpr StorageType kStorages[] = {
    {"torch HalfStorage", Dtype::kF16},  {"torch BFloat16Storage", Dtype::kBf16},
    {"torch FloatStorage", Dtype::kF32}, {"torch DoubleStorage", Dtype::kF64},
    {"torch CharStorage", Dtype::kI8},   {"torch ByteStorage", Dtype::kU8},
    {"torch ShortStorage", Dtype::kI16}, {"torch IntStorage", Dtype::kI32},
    {"torch LongStorage", Dtype::kI64},  {"torch BoolStorage", Dtype::kBool},
};

constexpr int kMaxDepth = 8;  // of dictionaries
constexpr size_t kMaxDimensions = 8;
constexpr size_t kMaxValues = 1 << 21;
constexpr size_t kMaxNameBytes = 512;

class StateReader {
 public:
  explicit StateReader(const PickleTree& tree) : tree_(tree) {}

  absl::Status Read(NodeId id, const std::string& path, int depth);
  std::vector<PickledTensor> Take() { return std::move(tensors_); }

 private:
  // Nothing: damaged.
  std::optional<PickledTensor> Tensor(const PickleNode& call) const;
  bool SetStorage(const PickleNode& persistent, PickledTensor& tensor) const;
  std::optional<std::vector<int64_t>> Integers(NodeId id) const;
  const PickleNode& Argument(const PickleNode& call, size_t index) const {
    return tree_[tree_[call.children[1]].children[index]];
  }
  size_t Arguments(const PickleNode& call) const { return tree_[call.children[1]].children.size(); }

  const PickleTree& tree_;
  std::vector<PickledTensor> tensors_;
  std::set<std::string> names_;
  size_t visited_ = 0;
};

std::optional<std::vector<int64_t>> StateReader::Integers(NodeId id) const {
  const PickleNode& tuple = tree_[id];
  if (tuple.kind != Kind::kTuple || tuple.children.size() > kMaxDimensions) return std::nullopt;
  std::vector<int64_t> values;
  for (const NodeId child : tuple.children) {
    if (tree_[child].kind != Kind::kInteger || tree_[child].integer < 0) return std::nullopt;
    values.push_back(tree_[child].integer);
  }
  return values;
}

// ("storage", type, key, device, elements).
bool StateReader::SetStorage(const PickleNode& persistent, PickledTensor& tensor) const {
  if (persistent.kind != Kind::kPersistent) return false;
  const PickleNode& tuple = tree_[persistent.children[0]];
  if (tuple.kind != Kind::kTuple || tuple.children.size() != 5) return false;
  const PickleNode &type = tree_[tuple.children[1]], &key = tree_[tuple.children[2]],
                   &elements = tree_[tuple.children[4]];
  if (tree_[tuple.children[0]].text != "storage" || type.kind != Kind::kGlobal ||
      key.kind != Kind::kText || key.text.size() > kMaxNameBytes ||
      elements.kind != Kind::kInteger || elements.integer < 0) {
    return false;
  }
  for (const StorageType& known : kStorages) {
    if (type.text != known.global) continue;
    tensor.dtype = known.dtype;
    tensor.storage = std::string(key.text);
    tensor.storage_elements = elements.integer;
    return true;
  }
  return false;
}

// Whether shape, strides and offset stay within the storage.
bool WithinStorage(const PickledTensor& tensor) {
  int64_t last = tensor.offset, elements = 1;
  for (size_t i = 0; i < tensor.shape.size(); ++i) {
    if (__builtin_mul_overflow(elements, tensor.shape[i], &elements)) return false;
    int64_t reach = 0;
    if (tensor.shape[i] > 0 &&
        (__builtin_mul_overflow(tensor.shape[i] - 1, tensor.strides[i], &reach) ||
         __builtin_add_overflow(last, reach, &last))) {
      return false;
    }
  }
  // A view that repeats its storage could claim more than there is.
  if (elements > tensor.storage_elements || tensor.offset > tensor.storage_elements) return false;
  return elements == 0 || last < tensor.storage_elements;
}

// _rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks, ...), or
// _rebuild_parameter of one.
std::optional<PickledTensor> StateReader::Tensor(const PickleNode& outer) const {
  const PickleNode* call = &outer;
  if (tree_[call->children[0]].text == kParameter) {
    if (Arguments(*call) < 1) return std::nullopt;
    call = &Argument(*call, 0);
    if (call->kind != Kind::kCall) return std::nullopt;
  }
  if (tree_[call->children[0]].text != kTensor || Arguments(*call) < 4) return std::nullopt;
  PickledTensor tensor;
  if (!SetStorage(Argument(*call, 0), tensor)) return std::nullopt;
  const PickleNode& offset = Argument(*call, 1);
  if (offset.kind != Kind::kInteger || offset.integer < 0) return std::nullopt;
  tensor.offset = offset.integer;
  const std::vector<NodeId>& arguments = tree_[call->children[1]].children;
  std::optional<std::vector<int64_t>> shape = Integers(arguments[2]);
  std::optional<std::vector<int64_t>> strides = Integers(arguments[3]);
  if (!shape || !strides || shape->size() != strides->size()) return std::nullopt;
  tensor.shape = *std::move(shape);
  tensor.strides = *std::move(strides);
  if (!WithinStorage(tensor)) return std::nullopt;
  return tensor;
}

absl::Status StateReader::Read(NodeId id, const std::string& path, int depth) {
  const PickleNode& node = tree_[id];
  // Dictionaries can be shared: without a bound on visits they would multiply.
  if (depth > kMaxDepth || ++visited_ > kMaxValues || path.size() > kMaxNameBytes) {
    return absl::InvalidArgumentError(
        "pickle: dictionaries nested too deeply, or names too long, or too many values");
  }
  if (node.kind == Kind::kCall) {
    std::optional<PickledTensor> tensor = Tensor(node);
    if (!tensor) {
      return absl::InvalidArgumentError(fmt::format(
          "pickle: tensor {} is damaged or does not lie within its storage", Printable(path)));
    }
    if (!names_.insert(path).second)
      return absl::InvalidArgumentError(
          fmt::format("pickle: tensor {} is there twice", Printable(path)));
    tensor->name = path;
    tensors_.push_back(*std::move(tensor));
    return absl::OkStatus();
  }
  if (node.kind != Kind::kDictionary) return absl::OkStatus();
  visited_ += node.children.size() / 2;
  for (size_t i = 0; i + 1 < node.children.size(); i += 2) {
    const PickleNode& key = tree_[node.children[i]];
    if (key.kind != Kind::kText) continue;
    const std::string name(key.text.substr(0, kMaxNameBytes + 1));
    RETURN_IF_ERROR(Read(node.children[i + 1], path.empty() ? name : path + "." + name, depth + 1));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<PickledTensor>> ReadPickledState(std::string_view pickle) {
  if (pickle.size() > kMaxPickleBytes)
    return absl::InvalidArgumentError(fmt::format("pickle: over {} bytes", kMaxPickleBytes));
  std::vector<std::string_view> known = {kDictionary, kTensor, kParameter};
  for (const StorageType& storage : kStorages) known.push_back(storage.global);
  ASSIGN_OR_RETURN(const PickleTree tree, ParsePickle(pickle, known));
  if (tree[tree.root].kind != Kind::kDictionary)
    return absl::InvalidArgumentError("pickle: a dictionary of tensors is expected");
  StateReader reader(tree);
  RETURN_IF_ERROR(reader.Read(tree.root, "", 0));
  return reader.Take();
}

}  // namespace qserve::worker::checkpoint
