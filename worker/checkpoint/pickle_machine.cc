// See pickle_machine.h. Opcodes are those of Python's Lib/pickletools.py.
#include "worker/checkpoint/pickle_machine.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>

#include "common/status_macros.h"
#include "worker/checkpoint/json_text.h"

namespace qserve::worker::checkpoint {
namespace {

using Kind = PickleNode::Kind;

enum Opcode : uint8_t {
  kProto = 0x80,
  kFrame = 0x95,
  kStop = '.',
  kMark = '(',
  kNone = 'N',
  kNewTrue = 0x88,
  kNewFalse = 0x89,
  kBinInt = 'J',
  kBinInt1 = 'K',
  kBinInt2 = 'M',
  kLong1 = 0x8a,
  kBinFloat = 'G',
  kBinUnicode = 'X',
  kShortBinUnicode = 0x8c,
  kEmptyTuple = ')',
  kTuple = 't',
  kTuple1 = 0x85,
  kTuple2 = 0x86,
  kTuple3 = 0x87,
  kEmptyList = ']',
  kAppend = 'a',
  kAppends = 'e',
  kEmptyDict = '}',
  kSetItem = 's',
  kSetItems = 'u',
  kGlobal = 'c',
  kStackGlobal = 0x93,
  kReduce = 'R',
  kBuild = 'b',
  kBinPersId = 'Q',
  kBinPut = 'q',
  kLongBinPut = 'r',
  kMemoize = 0x94,
  kBinGet = 'h',
  kLongBinGet = 'j',
};

constexpr size_t kMaxGlobalBytes = 200;

class Machine {
 public:
  Machine(std::string_view pickle, const std::vector<std::string_view>& known)
      : pickle_(pickle), known_(known) {}

  absl::StatusOr<PickleTree> Run() {
    while (!stopped_) {
      const std::optional<uint64_t> opcode = Number(1);
      if (!opcode) return Bad("it ends without its end mark");
      if (!Step(static_cast<uint8_t>(*opcode)))
        return Bad(error_.empty() ? fmt::format("damaged at byte {}", at_) : error_);
    }
    return std::move(tree_);
  }

 private:
  static absl::Status Bad(const std::string& why) {
    return absl::InvalidArgumentError(fmt::format("pickle: {}", why));
  }
  bool Fail(std::string why) {
    error_ = std::move(why);
    return false;
  }

  std::optional<uint64_t> Number(size_t bytes) {
    if (pickle_.size() - at_ < bytes) return std::nullopt;
    uint64_t value = 0;
    for (size_t i = 0; i < bytes; ++i)
      value |= uint64_t{static_cast<uint8_t>(pickle_[at_ + i])} << (8 * i);
    at_ += bytes;
    return value;
  }
  std::optional<std::string_view> Text(size_t length_bytes) {
    const std::optional<uint64_t> length = Number(length_bytes);
    if (!length || *length > pickle_.size() - at_) return std::nullopt;
    const std::string_view text = pickle_.substr(at_, static_cast<size_t>(*length));
    at_ += text.size();
    return text;
  }
  std::optional<std::string_view> Line() {
    const size_t end = pickle_.substr(at_, kMaxGlobalBytes).find('\n');
    if (end == std::string_view::npos) return std::nullopt;
    const std::string_view line = pickle_.substr(at_, end);
    at_ += end + 1;
    return line;
  }

  bool Push(PickleNode node) {
    // One byte of a pickle makes one node at most, so that this bounds nothing but the numbers.
    if (tree_.nodes.size() >= UINT32_MAX) return false;
    tree_.nodes.push_back(std::move(node));
    stack_.push_back(static_cast<NodeId>(tree_.nodes.size() - 1));
    return true;
  }
  bool PushInteger(int64_t value) { return Push({.kind = Kind::kInteger, .integer = value}); }
  bool PushText(std::optional<std::string_view> text) {
    return text && Push({.kind = Kind::kText, .text = *text});
  }
  // The last `count` values above the last mark, taken off.
  bool Take(size_t count, std::vector<NodeId>& values) {
    const size_t floor = marks_.empty() ? 0 : marks_.back();
    if (stack_.size() < floor + count) return false;
    values.assign(stack_.end() - static_cast<std::ptrdiff_t>(count), stack_.end());
    stack_.resize(stack_.size() - count);
    return true;
  }
  bool TakeToMark(std::vector<NodeId>& values) {
    if (marks_.empty()) return false;
    if (!Take(stack_.size() - marks_.back(), values)) return false;
    marks_.pop_back();
    return true;
  }
  // The value below, which must be of that kind.
  PickleNode* Top(Kind kind) {
    const size_t floor = marks_.empty() ? 0 : marks_.back();
    if (stack_.size() <= floor) return nullptr;
    PickleNode& node = tree_.nodes[stack_.back()];
    return node.kind == kind ? &node : nullptr;
  }

  bool Step(uint8_t opcode);
  bool StepScalar(uint8_t opcode);
  bool StepContainer(uint8_t opcode);
  bool StepMemo(uint8_t opcode);
  bool StepObject(uint8_t opcode);
  bool MakeTuple(size_t count);
  bool Extend(Kind kind, const std::vector<NodeId>& values);
  bool PushGlobal(std::string_view module, std::string_view name);
  bool Reduce();

  const std::string_view pickle_;
  const std::vector<std::string_view>& known_;
  PickleTree tree_;
  size_t at_ = 0;
  std::vector<NodeId> stack_;
  std::vector<size_t> marks_;  // heights of the stack
  std::map<uint64_t, NodeId> memo_;
  size_t copied_pairs_ = 0;
  bool stopped_ = false;
  std::string error_;
};

bool Machine::Step(uint8_t opcode) {
  switch (opcode) {
    case kProto: {
      const std::optional<uint64_t> version = Number(1);
      if (version && *version >= 2 && *version <= 5) return true;
      return Fail("protocols 2 to 5 are understood");
    }
    case kFrame:
      return Number(8).has_value();
    case kStop:
      if (stack_.size() != 1 || !marks_.empty()) return false;
      tree_.root = stack_.back();
      return stopped_ = true;
    case kMark:
      marks_.push_back(stack_.size());
      return true;
    case kNone:
    case kNewTrue:
    case kNewFalse:
    case kBinInt:
    case kBinInt1:
    case kBinInt2:
    case kLong1:
    case kBinFloat:
    case kBinUnicode:
    case kShortBinUnicode:
      return StepScalar(opcode);
    case kBinPut:
    case kLongBinPut:
    case kMemoize:
    case kBinGet:
    case kLongBinGet:
      return StepMemo(opcode);
    case kGlobal:
    case kStackGlobal:
    case kReduce:
    case kBuild:
    case kBinPersId:
      return StepObject(opcode);
    default:
      return StepContainer(opcode);
  }
}

bool Machine::StepScalar(uint8_t opcode) {
  const auto integer = [&](size_t bytes) {
    const std::optional<uint64_t> value = Number(bytes);
    if (!value) return false;
    return PushInteger(bytes == 4 ? int64_t{static_cast<int32_t>(*value)}
                                  : static_cast<int64_t>(*value));
  };
  switch (opcode) {
    case kNone:
      return Push({});
    case kNewTrue:
    case kNewFalse:
      return Push({.kind = Kind::kBool, .integer = opcode == kNewTrue});
    case kBinInt:
      return integer(4);
    case kBinInt1:
      return integer(1);
    case kBinInt2:
      return integer(2);
    case kLong1: {
      const std::optional<uint64_t> length = Number(1);
      if (!length || *length > 8) return Fail("an integer of more than 64 bits");
      const std::optional<uint64_t> value = Number(static_cast<size_t>(*length));
      if (!value) return false;
      const auto shift = static_cast<int>(64 - 8 * *length);  // extends the sign
      return PushInteger(*length == 0 ? 0 : static_cast<int64_t>(*value << shift) >> shift);
    }
    case kBinFloat:
      return Number(8) && Push({.kind = Kind::kFloat});
    case kShortBinUnicode:
      return PushText(Text(1));
    default:
      return PushText(Text(4));
  }
}

bool Machine::StepContainer(uint8_t opcode) {
  std::vector<NodeId> values;
  switch (opcode) {
    case kEmptyTuple:
      return Push({.kind = Kind::kTuple});
    case kTuple1:
    case kTuple2:
    case kTuple3:
      return Take(size_t{opcode} - kTuple1 + 1, values) &&
             Push({.kind = Kind::kTuple, .children = std::move(values)});
    case kTuple:
      return TakeToMark(values) && Push({.kind = Kind::kTuple, .children = std::move(values)});
    case kEmptyList:
      return Push({.kind = Kind::kList});
    case kEmptyDict:
      return Push({.kind = Kind::kDictionary});
    case kAppend:
      return Take(1, values) && Extend(Kind::kList, values);
    case kAppends:
      return TakeToMark(values) && Extend(Kind::kList, values);
    case kSetItem:
      return Take(2, values) && Extend(Kind::kDictionary, values);
    case kSetItems:
      return TakeToMark(values) && values.size() % 2 == 0 && Extend(Kind::kDictionary, values);
    default:
      return Fail(
          fmt::format("opcode 0x{:02x} at byte {} is not one that a dictionary of tensors needs",
                      opcode, at_ - 1));
  }
}

bool Machine::Extend(Kind kind, const std::vector<NodeId>& values) {
  PickleNode* const container = Top(kind);
  if (container == nullptr) return false;
  container->children.insert(container->children.end(), values.begin(), values.end());
  return true;
}

bool Machine::StepMemo(uint8_t opcode) {
  if (opcode == kBinGet || opcode == kLongBinGet) {
    const std::optional<uint64_t> key = Number(opcode == kBinGet ? 1 : 4);
    if (!key) return false;
    const auto found = memo_.find(*key);
    if (found == memo_.end()) return false;
    stack_.push_back(found->second);
    return true;
  }
  std::optional<uint64_t> key = memo_.size();
  if (opcode != kMemoize) key = Number(opcode == kBinPut ? 1 : 4);
  const size_t floor = marks_.empty() ? 0 : marks_.back();
  if (!key || stack_.size() <= floor) return false;
  memo_[*key] = stack_.back();
  return true;
}

bool Machine::PushGlobal(std::string_view module, std::string_view name) {
  for (const std::string_view known : known_) {
    if (known.size() == module.size() + 1 + name.size() && known.starts_with(module) &&
        known[module.size()] == ' ' && known.ends_with(name)) {
      return Push({.kind = Kind::kGlobal, .text = known});
    }
  }
  return Fail(fmt::format("{}.{} is not among the types that are read, and nothing is executed",
                          Printable(module), Printable(name)));
}

bool Machine::StepObject(uint8_t opcode) {
  std::vector<NodeId> values;
  switch (opcode) {
    case kGlobal: {
      const std::optional<std::string_view> module = Line();
      const std::optional<std::string_view> name = module ? Line() : std::nullopt;
      return name && PushGlobal(*module, *name);
    }
    case kStackGlobal: {
      if (!Take(2, values)) return false;
      const PickleNode &module = tree_[values[0]], &name = tree_[values[1]];
      if (module.kind != Kind::kText || name.kind != Kind::kText) return false;
      return PushGlobal(module.text, name.text);
    }
    case kBinPersId:
      return Take(1, values) && Push({.kind = Kind::kPersistent, .children = std::move(values)});
    case kBuild:  // attributes of an object (a state dictionary's _metadata): not looked at
      return Take(1, values) && !stack_.empty();
    default:
      return Reduce();
  }
}

bool Machine::Reduce() {
  std::vector<NodeId> values;
  if (!Take(2, values)) return false;
  if (tree_[values[0]].kind != Kind::kGlobal || tree_[values[1]].kind != Kind::kTuple) return false;
  if (tree_[values[0]].text != known_.front())
    return Push({.kind = Kind::kCall, .children = std::move(values)});
  PickleNode dictionary = {.kind = Kind::kDictionary};
  const std::vector<NodeId>& arguments = tree_[values[1]].children;
  if (arguments.size() > 1) return false;
  if (arguments.size() == 1) {
    const PickleNode& pairs = tree_[arguments[0]];
    if (pairs.kind != Kind::kList) return false;
    for (const NodeId pair : pairs.children) {
      const PickleNode& entry = tree_[pair];
      if (entry.children.size() != 2 || entry.kind == Kind::kDictionary) return false;
      // A list may be named again and again: what is copied stays below the pickle's size.
      if (++copied_pairs_ > pickle_.size()) return false;
      dictionary.children.insert(dictionary.children.end(), entry.children.begin(),
                                 entry.children.end());
    }
  }
  return Push(std::move(dictionary));
}

}  // namespace

absl::StatusOr<PickleTree> ParsePickle(std::string_view pickle,
                                       const std::vector<std::string_view>& known) {
  return Machine(pickle, known).Run();
}

}  // namespace qserve::worker::checkpoint
