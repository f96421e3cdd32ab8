// Two network namespaces joined by a pair of virtual interfaces, as two machines on one private
// network: 10.213.7.1 in the first, 10.213.7.2 in the second. Made and removed on the test's
// thread; it takes root and `ip netns`, and a host that lets namespaces be entered.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <string>
#include <vector>

namespace qserve::integration {

class TwoNetworks {
 public:
  TwoNetworks() { problem_ = Make(); }
  ~TwoNetworks() {
    for (int node = 0; node < 2; ++node) Shell("ip netns del " + Name(node));
  }
  TwoNetworks(const TwoNetworks&) = delete;
  TwoNetworks& operator=(const TwoNetworks&) = delete;

  // Why there are none here; empty if there are.
  const std::string& problem() const { return problem_; }
  static std::string Address(int node) { return "10.213.7." + std::to_string(node + 1); }
  // `command` as it runs on that machine; the process is the command's own.
  static std::vector<std::string> On(int node, const std::vector<std::string>& command) {
    std::vector<std::string> whole = {"ip", "netns", "exec", Name(node)};
    whole.insert(whole.end(), command.begin(), command.end());
    return whole;
  }
  bool CutCable() { return Shell("ip -n " + Name(1) + " link set " + Link(1) + " down"); }

 private:
  static bool Shell(const std::string& command) {
    return std::system((command + " > /dev/null 2>&1").c_str()) == 0;
  }
  static std::string Name(int node) {
    return "qserve" + std::to_string(getpid()) + "n" + std::to_string(node);
  }
  static std::string Link(int node) {
    return "qs" + std::to_string(getpid()) + "v" + std::to_string(node);
  }
  static std::string Make() {
    if (!Shell("ip netns add " + Name(0)) || !Shell("ip netns add " + Name(1))) {
      return "network namespaces cannot be made here (needs root and iproute2)";
    }
    // Where the root folder is no mount point (chroot) they can be made, but not entered.
    if (!Shell("ip netns exec " + Name(0) + " true")) {
      return "network namespaces cannot be entered here";
    }
    if (!Shell("ip link add " + Link(0) + " netns " + Name(0) + " type veth peer name " + Link(1) +
               " netns " + Name(1))) {
      return "virtual interfaces cannot be made here";
    }
    for (int node = 0; node < 2; ++node) {
      const std::string in = "ip -n " + Name(node);
      if (!Shell(in + " address add " + Address(node) + "/24 dev " + Link(node)) ||
          !Shell(in + " link set " + Link(node) + " up") || !Shell(in + " link set lo up")) {
        return "virtual interfaces cannot be set up here";
      }
    }
    return "";
  }
  std::string problem_;
};

}  // namespace qserve::integration
