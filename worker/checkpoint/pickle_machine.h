// The stack machine of pickle, protocols 2 to 5, cut down to data: pushes, containers, memo,
// and the globals that the caller knows. Called by pickled_state.cc; pure. Nothing is executed:
// what a REDUCE would call becomes a node of the tree.
#pragma once

#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace qserve::worker::checkpoint {

// Values are numbers of nodes: pickles share and repeat them.
using NodeId = uint32_t;

struct PickleNode {
  enum class Kind {
    kNone,
    kBool,
    kInteger,
    kFloat,
    kText,
    kTuple,       // children
    kList,        // children
    kDictionary,  // children: key, value, key, value, ...
    kGlobal,      // text: "module name"
    kPersistent,  // children: the one identification
    kCall,        // children: the global, the tuple of arguments
  };
  Kind kind = Kind::kNone;
  int64_t integer = 0;
  std::string_view text;  // of the pickle's bytes
  std::vector<NodeId> children;
};

struct PickleTree {
  std::vector<PickleNode> nodes;
  NodeId root = 0;
  const PickleNode& operator[](NodeId id) const { return nodes[id]; }
};

// `known`: the globals that may appear, as "module name". A call of the first of them with no
// arguments, or with a list of pairs, is an empty (or filled) dictionary. The result refers to
// `pickle`. Time and memory are linear in its size. InvalidArgument for anything else.
absl::StatusOr<PickleTree> ParsePickle(std::string_view pickle,
                                       const std::vector<std::string_view>& known);

}  // namespace qserve::worker::checkpoint
