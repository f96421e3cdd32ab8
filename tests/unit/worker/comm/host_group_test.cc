// The host groups between threads and over TCP: messages arrive whole and in order, an idle leader
// is waited for, deaths and aborts end every wait, strangers do no harm.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <thread>

#include "worker/comm/local_host_group.h"
#include "worker/comm/memory_store.h"
#include "worker/comm/tcp_host_group.h"
#include "worker/comm/thread_host_group.h"
#include "worker/group/hello.h"

namespace qserve::worker::comm {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

enum class Kind { kThread, kTcp };

TcpHostGroupOptions TcpOptions(int rank, int size) {
  TcpHostGroupOptions options;
  options.rank = rank;
  options.size = size;
  options.bind_host = "127.0.0.1";
  options.generation = 9;
  options.group_secret = "secret";
  options.config_hash = "c0ffee";
  return options;
}

class Members {
 public:
  Members(Kind kind, int size, Duration timeout = std::chrono::minutes(2))
      : hub_(size, timeout), groups_(static_cast<size_t>(size)) {
    RunAll([&](int r) {
      if (kind == Kind::kThread) {
        groups_[static_cast<size_t>(r)] = std::make_unique<ThreadHostGroup>(&hub_, r);
        return;
      }
      TcpHostGroupOptions options = TcpOptions(r, size);
      options.timeout = timeout;
      auto made = CreateTcpHostGroup(options, &store_);
      ASSERT_TRUE(made.ok()) << made.status();
      groups_[static_cast<size_t>(r)] = *std::move(made);
    });
  }
  std::unique_ptr<HostGroup>& operator[](int r) { return groups_[static_cast<size_t>(r)]; }
  int size() const { return static_cast<int>(groups_.size()); }
  void RunAll(const std::function<void(int)>& body) {
    std::vector<std::thread> threads;
    for (int r = 0; r < size(); ++r) threads.emplace_back(body, r);
    for (std::thread& thread : threads) thread.join();
  }

 private:
  ThreadHostHub hub_;
  MemoryStore store_;
  std::vector<std::unique_ptr<HostGroup>> groups_;
};

std::string Message(int i) {
  const size_t sizes[] = {0, 1, 5000, 300'000};
  return std::string(sizes[i % 4], static_cast<char>(i));
}

class HostGroupTest : public ::testing::TestWithParam<Kind> {};

TEST_P(HostGroupTest, BroadcastsArriveWholeAndInOrder) {
  Members members(GetParam(), 4);
  members.RunAll([&](int r) {
    for (int i = 0; i < 40; ++i) {
      if (r == 0) {
        ASSERT_TRUE(members[0]->Broadcast(Message(i)).ok());
      } else {
        const auto got = members[r]->ReceiveBroadcast();
        ASSERT_TRUE(got.ok()) << got.status();
        ASSERT_TRUE(*got == Message(i)) << i;
      }
    }
  });
}

TEST_P(HostGroupTest, GathersInRankOrderAndHoldsBarriers) {
  Members members(GetParam(), 3);
  std::atomic<int> arrived{0};
  members.RunAll([&](int r) {
    for (int round = 1; round <= 20; ++round) {
      const auto all = members[r]->Gather("from " + std::to_string(r));
      ASSERT_TRUE(all.ok()) << all.status();
      if (r == 0) {
        EXPECT_THAT(*all, ElementsAre("from 0", "from 1", "from 2"));
      } else {
        EXPECT_THAT(*all, IsEmpty());
      }
      ++arrived;
      ASSERT_TRUE(members[r]->Barrier().ok());
      EXPECT_GE(arrived, 3 * round);
      ASSERT_TRUE(members[r]->Barrier().ok());
    }
  });
}

TEST_P(HostGroupTest, AFollowerOutwaitsTheTimeOutOfAnIdleLeader) {
  Members members(GetParam(), 2, std::chrono::milliseconds(100));
  members.RunAll([&](int r) {
    if (r == 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(400));
      ASSERT_TRUE(members[0]->Broadcast("at last").ok());
    } else {
      EXPECT_EQ(members[1]->ReceiveBroadcast().value_or("lost"), "at last");
    }
  });
}

TEST_P(HostGroupTest, WhoDoesNotComeIsUnavailable) {
  Members members(GetParam(), 2, std::chrono::milliseconds(100));
  EXPECT_TRUE(absl::IsUnavailable(members[0]->Gather("mine").status()));
}

TEST_P(HostGroupTest, AbortCancelsOwnWaitsAndIsSeenByOthers) {
  Members members(GetParam(), 3);
  std::thread aborter([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    members[0]->Abort();
  });
  members.RunAll([&](int r) {
    for (int attempt = 0; attempt < 2; ++attempt) {
      if (r == 0) {
        EXPECT_TRUE(absl::IsCancelled(members[0]->Barrier()));
      } else {
        const absl::Status seen = members[r]->ReceiveBroadcast().status();
        EXPECT_TRUE(absl::IsUnavailable(seen)) << seen;
      }
    }
  });
  aborter.join();
  EXPECT_TRUE(absl::IsCancelled(members[0]->Broadcast("x")));
}

TEST_P(HostGroupTest, AFollowersAbortReachesTheLeader) {
  Members members(GetParam(), 3);
  members[2]->Abort();
  EXPECT_TRUE(absl::IsCancelled(members[2]->ReceiveBroadcast().status()));
  EXPECT_TRUE(absl::IsUnavailable(members[0]->Gather("").status()));
}

INSTANTIATE_TEST_SUITE_P(Kinds, HostGroupTest, ::testing::Values(Kind::kThread, Kind::kTcp),
                         [](const auto& param) {
                           return std::string(param.param == Kind::kThread ? "Thread" : "Tcp");
                         });

TEST(TcpHostGroup, TheDeathOfAnIdleLeaderEndsTheWaitForIt) {
  Members members(Kind::kTcp, 2);
  std::thread leader([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    members[0].reset();
  });
  const absl::Status status = members[1]->ReceiveBroadcast().status();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 0"));
  leader.join();
}

TEST(TcpHostGroup, TheLeaderNamesTheFollowerThatIsGone) {
  Members members(Kind::kTcp, 3);
  members[2].reset();
  for (int i = 0; i < 2; ++i) {
    const absl::Status status = members[0]->Broadcast("plan");
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("rank 2"));
  }
  // Rank 1 is there, but rank 2's end ends the wait for both.
  EXPECT_THAT(std::string(members[0]->Gather("").status().message()), HasSubstr("rank 2"));
}

TEST(TcpHostGroup, CallsThatDoNotMatchAreAnError) {
  Members members(Kind::kTcp, 2);
  ASSERT_TRUE(members[0]->Broadcast("plan").ok());
  EXPECT_THAT(std::string(members[1]->Barrier().message()), HasSubstr("out of step"));
}

TEST(TcpHostGroup, MessagesAreCapped) {
  MemoryStore store;
  std::vector<std::unique_ptr<HostGroup>> groups(2);
  std::vector<std::thread> threads;
  for (int r = 0; r < 2; ++r) {
    threads.emplace_back([&, r] {
      TcpHostGroupOptions options = TcpOptions(r, 2);
      options.max_message_bytes = r == 0 ? 1 << 20 : 64 << 10;
      auto made = CreateTcpHostGroup(options, &store);
      ASSERT_TRUE(made.ok()) << made.status();
      groups[static_cast<size_t>(r)] = *std::move(made);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(absl::IsInvalidArgument(groups[0]->Broadcast(std::string(1 << 20, 'x'))));
  ASSERT_TRUE(groups[0]->Broadcast(std::string(100'000, 'x')).ok());
  EXPECT_THAT(std::string(groups[1]->ReceiveBroadcast().status().message()), HasSubstr("at most"));
}

TEST(TcpHostGroup, StrangersAreTurnedAwayWhileTheGroupForms) {
  MemoryStore store;
  std::unique_ptr<HostGroup> leader;
  std::thread leading([&] {
    auto made = CreateTcpHostGroup(TcpOptions(0, 2), &store);
    ASSERT_TRUE(made.ok()) << made.status();
    leader = *std::move(made);
  });
  const auto address = store.Get("host_group/address", std::chrono::seconds(60));
  ASSERT_TRUE(address.ok());
  const group::Endpoint endpoint = *group::ParseEndpoint(*address);
  const TimePoint deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  auto garbage = group::Connect(endpoint, deadline, -1);
  ASSERT_TRUE(garbage.ok());
  ASSERT_TRUE(group::SendAll(garbage->get(), std::string(5000, '\xee'), deadline, -1).ok());
  auto silent = group::Connect(endpoint, deadline, -1);

  for (const auto& [change, reason] :
       std::vector<std::pair<std::function<void(TcpHostGroupOptions&)>, std::string>>{
           {[](auto& o) { o.group_secret = "guess"; }, "secret"},
           {[](auto& o) { o.generation = 8; }, "generation"},
           {[](auto& o) { o.config_hash = "decaf"; }, "hash decaf there, c0ffee here"},
           {[](auto& o) { o.size = 3; }, "this group has 2"}}) {
    TcpHostGroupOptions options = TcpOptions(1, 2);
    change(options);
    const auto refused = CreateTcpHostGroup(options, &store);
    EXPECT_EQ(refused.status().code(), absl::StatusCode::kPermissionDenied) << refused.status();
    EXPECT_THAT(std::string(refused.status().message()), HasSubstr(reason));
  }

  auto follower = CreateTcpHostGroup(TcpOptions(1, 2), &store);
  ASSERT_TRUE(follower.ok()) << follower.status();
  leading.join();
  ASSERT_NE(leader, nullptr);
  ASSERT_TRUE(leader->Broadcast("hello").ok());
  EXPECT_EQ((*follower)->ReceiveBroadcast().value_or(""), "hello");
}

TEST(TcpHostGroup, SaysHowManyDidNotCome) {
  MemoryStore store;
  TcpHostGroupOptions options = TcpOptions(0, 3);
  options.connect_timeout = std::chrono::milliseconds(100);
  const auto made = CreateTcpHostGroup(options, &store);
  EXPECT_THAT(std::string(made.status().message()), HasSubstr("2 of 3 ranks"));
}

TEST(LocalHostGroup, IsAGroupOfOne) {
  LocalHostGroup group;
  EXPECT_TRUE(group.Broadcast("plan").ok());
  EXPECT_TRUE(group.Barrier().ok());
  EXPECT_THAT(*group.Gather("mine"), ElementsAre("mine"));
  group.Abort();
  EXPECT_TRUE(absl::IsCancelled(group.Barrier()));
}

}  // namespace
}  // namespace qserve::worker::comm
