#include "worker/comm/shared_memory_communicator.h"

#include <fmt/format.h>
#include <linux/futex.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <ctime>
#include <functional>
#include <thread>
#include <utility>
#include <vector>

#include "common/check.h"
#include "common/status_macros.h"
#include "worker/comm/matrix_copy.h"
#include "worker/comm/shared_segment.h"
#include "worker/group/socket.h"

namespace qserve::worker::comm {
namespace {

constexpr int64_t kFloatBytes = sizeof(float);
// Looks before sleeping, some 20 us: longer than ranks usually are apart. Where ranks share cores
// the one that is waited for needs the core.
constexpr int kSpins = 20000;
// How often a sleeper looks whether the peer is alive.
constexpr long kLookNanoseconds = 20'000'000;

// Waits until somebody wakes it or a moment has passed, unless the word is not `seen` any more.
// Between processes, which std::atomic's own waiting is not.
void Sleep(std::atomic<uint32_t>& word, uint32_t seen) {
  const timespec moment = {.tv_sec = 0, .tv_nsec = kLookNanoseconds};
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT, seen, &moment, nullptr, 0);
}
void Wake(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE, INT32_MAX, nullptr, nullptr,
          0);
}

// Whether `turn` is `wanted` or later; turns wrap around.
bool Reached(uint32_t turn, uint32_t wanted) { return static_cast<int32_t>(turn - wanted) >= 0; }

class SharedMemoryCommunicator final : public Communicator {
 public:
  SharedMemoryCommunicator(const SharedMemoryOptions& options,
                           std::unique_ptr<SharedSegment> segment, std::vector<UniqueFd> peers,
                           kernels::Backend* backend)
      : options_(options),
        segment_(std::move(segment)),
        peers_(std::move(peers)),
        backend_(backend),
        spins_(std::cmp_less(options.size, std::thread::hardware_concurrency() + 1) ? kSpins : 1) {}

  // Peers that wait for this rank, or will, learn that it does not come.
  ~SharedMemoryCommunicator() override { SharedMemoryCommunicator::Abort(); }

  int rank() const override { return options_.rank; }
  int size() const override { return options_.size; }

  void AllReduceSum(kernels::Matrix<const float> partial, kernels::FloatMatrix sum) override {
    const int64_t count = partial.rows * partial.cols;
    if (count == 0) return;
    Guarded("all-reduce", [&] {
      const float* in = partial.data;
      if (!IsContiguous(partial)) {
        packed_.resize(static_cast<size_t>(count));
        Pack(partial, packed_.data());
        in = packed_.data();
      }
      float* out = static_cast<float*>(sum.data);
      const bool direct =
          sum.type == kernels::FloatType::kF32 && (sum.rows <= 1 || sum.stride == sum.cols);
      if (!direct) {
        packed_.resize(static_cast<size_t>(count));
        out = packed_.data();
      }
      const bool whole = size() <= 2 || count * kFloatBytes <= options_.one_shot_bytes;
      const int64_t most = segment_->buffer_floats();
      for (int64_t first = 0; first < count; first += most) {
        const int64_t length = std::min(most, count - first);
        if (!(whole ? SumWhole(in + first, length, out + first)
                    : SumParts(in + first, length, out + first))) {
          return false;
        }
      }
      if (!direct) Store(packed_.data(), sum);
      return true;
    });
  }

  void GatherColumns(kernels::Matrix<const float> local, kernels::Matrix<float> out) override {
    if (local.rows * local.cols == 0) return;
    Guarded("gather", [&] {
      // In pieces of whole rows, or of one row's columns where not even one fits.
      const int64_t most = segment_->buffer_floats();
      const int64_t cols = std::min(local.cols, most);
      const int64_t rows = std::max<int64_t>(1, most / local.cols);
      for (int64_t row = 0; row < local.rows; row += rows) {
        for (int64_t col = 0; col < local.cols; col += cols) {
          const kernels::Matrix<const float> piece = {
              local.row(row) + col, std::min(rows, local.rows - row),
              std::min(cols, local.cols - col), local.stride};
          Pack(piece, Mine());
          if (!Turn()) return false;
          for (int r = 0; rank() == 0 && r < size(); ++r) {
            Unpack(Of(r), piece.cols, r * local.cols + col,
                   {out.row(row), piece.rows, out.cols, out.stride});
          }
        }
      }
      return true;
    });
  }

  void BroadcastIds(int32_t* ids, int64_t count) override {
    Guarded("broadcast", [&] {
      const int64_t most = segment_->buffer_floats();  // an id is as large as a float
      for (int64_t first = 0; first < count; first += most) {
        const int64_t length = std::min(most, count - first);
        if (rank() == 0) std::copy_n(ids + first, length, reinterpret_cast<int32_t*>(Mine()));
        if (!Turn()) return false;
        if (rank() != 0) std::copy_n(reinterpret_cast<int32_t*>(Of(0)), length, ids + first);
      }
      return true;
    });
  }

  void Abort() override {
    segment_->counter(rank()).aborted = true;
    for (int r = 0; r < size(); ++r) Wake(segment_->counter(r).turn);
  }

 private:
  // Runs one collective; the first failure is latched, here and in the backend.
  void Guarded(const char* what, const std::function<bool()>& collective) {
    backend_->Synchronize();
    if (failure_.empty() && IsAborted()) failure_ = "aborted";
    if (failure_.empty() && !collective()) Abort();
    if (failure_.empty()) return;
    backend_->Fail({kernels::StatusCode::kDevice,
                    fmt::format("{} between the ranks failed: {}", what, failure_)});
  }

  // Where this rank writes before the next turn, and what rank r wrote before the last one.
  float* Mine() { return segment_->buffer(rank(), turn_ + 1); }
  float* Of(int r) { return segment_->buffer(r, turn_); }

  // Publishes what this rank wrote and waits for what the others did. False: failure_ says why.
  bool Turn() {
    ++turn_;
    RankCounter& mine = segment_->counter(rank());
    mine.turn.store(turn_);
    if (mine.sleepers.load() > 0) Wake(mine.turn);
    for (int r = 0; r < size(); ++r) {
      if (r != rank() && !Await(r)) return false;
    }
    return true;
  }

  bool Await(int peer) {
    RankCounter& counter = segment_->counter(peer);
    for (int i = 0; i < spins_; ++i) {
      if (Reached(counter.turn.load(std::memory_order_acquire), turn_)) return true;
    }
    const TimePoint begin = SteadyClock().Now();
    while (true) {
      // The sleeper is counted before it looks: who publishes after its look sees that it sleeps.
      ++counter.sleepers;
      const uint32_t seen = counter.turn.load();
      if (!Reached(seen, turn_) && !IsAborted()) Sleep(counter.turn, seen);
      --counter.sleepers;
      if (Reached(counter.turn.load(), turn_)) return true;
      if (IsAborted()) {
        failure_ = "aborted";
      } else if (HasExited(peer)) {
        failure_ = fmt::format("rank {} is gone", peer);
      } else if (SteadyClock().Now() - begin > options_.collective_timeout) {
        failure_ = fmt::format("rank {} did not come in time", peer);
      } else {
        continue;
      }
      return false;
    }
  }

  bool IsAborted() {
    for (int r = 0; r < size(); ++r) {
      if (segment_->counter(r).aborted) return true;
    }
    return false;
  }
  bool HasExited(int peer) const {
    pollfd ended = {.fd = peers_[static_cast<size_t>(peer)].get(), .events = POLLIN, .revents = 0};
    return poll(&ended, 1, 0) > 0;
  }

  // Everybody adds everything.
  bool SumWhole(const float* in, int64_t count, float* out) {
    std::copy_n(in, count, Mine());
    if (!Turn()) return false;
    std::vector<const float*>& inputs = Inputs(0);
    SumInRankOrder(inputs.data(), size(), count, out);
    return true;
  }

  // Rank p adds part p.
  bool SumParts(const float* in, int64_t count, float* out) {
    const auto first = [&](int part) { return count * part / size(); };
    std::copy_n(in, count, Mine());
    if (!Turn()) return false;
    const int64_t begin = first(rank());
    SumInRankOrder(Inputs(begin).data(), size(), first(rank() + 1) - begin, Mine());
    if (!Turn()) return false;
    for (int r = 0; r < size(); ++r) {
      std::copy_n(Of(r), first(r + 1) - first(r), out + first(r));
    }
    return true;
  }

  std::vector<const float*>& Inputs(int64_t first) {
    inputs_.resize(static_cast<size_t>(size()));
    for (int r = 0; r < size(); ++r) inputs_[static_cast<size_t>(r)] = Of(r) + first;
    return inputs_;
  }

  const SharedMemoryOptions options_;
  const std::unique_ptr<SharedSegment> segment_;
  const std::vector<UniqueFd> peers_;  // pidfds
  kernels::Backend* const backend_;
  const int spins_;
  uint32_t turn_ = 0;
  std::string failure_;
  std::vector<float> packed_;
  std::vector<const float*> inputs_;
};

// Says for this rank whether it can, and returns whether all can.
absl::Status Agree(const SharedMemoryOptions& options, group::KeyValueStore* store,
                   const absl::Status& mine) {
  const auto key = [&](int rank) { return fmt::format("{}can/{}", options.key_prefix, rank); };
  RETURN_IF_ERROR(store->Set(key(options.rank), mine.ok() ? "yes" : "no"));
  absl::Status all = mine;
  for (int r = 0; r < options.size; ++r) {
    ASSIGN_OR_RETURN(const std::string answer, store->Get(key(r), options.connect_timeout));
    if (answer != "yes" && all.ok()) {
      all = absl::FailedPreconditionError(fmt::format("rank {} cannot", r));
    }
  }
  if (all.ok()) return all;
  return absl::FailedPreconditionError(
      fmt::format("the ranks cannot share memory: {}", std::string(all.message())));
}

absl::StatusOr<std::unique_ptr<SharedSegment>> MakeOrOpen(const SharedMemoryOptions& options,
                                                          group::KeyValueStore* store) {
  const std::string key = options.key_prefix + "name";
  if (options.rank == 0) {
    auto made = SharedSegment::Create(options.size, options.buffer_bytes);
    RETURN_IF_ERROR(store->Set(key, made.ok() ? (*made)->name() : ""));
    return made;
  }
  ASSIGN_OR_RETURN(const std::string name, store->Get(key, options.connect_timeout));
  return SharedSegment::Open(name, options.size, options.buffer_bytes);
}

absl::StatusOr<std::vector<UniqueFd>> WatchPeers(SharedSegment& segment, int size) {
  std::vector<UniqueFd> peers;
  for (int r = 0; r < size; ++r) {
    const int32_t pid = segment.counter(r).pid;
    peers.emplace_back(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
    if (!peers.back().valid()) {
      return absl::FailedPreconditionError(fmt::format("rank {} is not to be seen here", r));
    }
  }
  return peers;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> CreateSharedMemoryCommunicator(
    const SharedMemoryOptions& options, group::KeyValueStore* store, kernels::Backend* backend) {
  QSERVE_CHECK(options.size > 0 && options.rank >= 0 && options.rank < options.size);
  QSERVE_CHECK(options.buffer_bytes > 0 && options.buffer_bytes % 128 == 0);
  auto segment = MakeOrOpen(options, store);
  if (segment.ok()) (*segment)->counter(options.rank).pid = getpid();
  RETURN_IF_ERROR(Agree(options, store, segment.status()));
  if (options.rank == 0) (*segment)->RemoveName();
  SharedMemoryOptions second = options;
  second.key_prefix += "peers/";
  auto peers = WatchPeers(**segment, options.size);
  RETURN_IF_ERROR(Agree(second, store, peers.status()));
  return std::unique_ptr<Communicator>(
      new SharedMemoryCommunicator(options, *std::move(segment), *std::move(peers), backend));
}

}  // namespace qserve::worker::comm
