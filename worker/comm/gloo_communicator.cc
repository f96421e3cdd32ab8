// The one file that knows Gloo. Everything that Gloo throws is caught here.
#include "worker/comm/gloo_communicator.h"

#include <fmt/format.h>
#include <gloo/rendezvous/context.h>
#include <gloo/rendezvous/store.h>
#include <gloo/transport/tcp/device.h>
#include <gloo/transport/unbound_buffer.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <functional>
#include <mutex>
#include <utility>
#include <vector>

#include "common/check.h"
#include "common/log.h"
#include "worker/comm/matrix_copy.h"

namespace qserve::worker::comm {
namespace {

using GlooBuffer = ::gloo::transport::UnboundBuffer;
using std::chrono::milliseconds;

milliseconds Milliseconds(Duration duration) { return std::chrono::ceil<milliseconds>(duration); }

// The group's key-value store as Gloo wants it: failures are thrown, and caught below.
class GlooStore final : public ::gloo::rendezvous::Store {
 public:
  GlooStore(group::KeyValueStore* store, std::string prefix, Duration timeout)
      : store_(store), prefix_(std::move(prefix)), timeout_(timeout) {}

  void set(const std::string& key, const std::vector<char>& data) override {
    ThrowIfError(store_->Set(prefix_ + key, std::string(data.begin(), data.end())));
  }
  std::vector<char> get(const std::string& key) override {
    const absl::StatusOr<std::string> value = store_->Get(prefix_ + key, timeout_);
    ThrowIfError(value.status());
    return {value->begin(), value->end()};
  }
  void wait(const std::vector<std::string>& keys) override { wait(keys, Milliseconds(timeout_)); }
  void wait(const std::vector<std::string>& keys, const milliseconds& timeout) override {
    for (const std::string& key : keys) ThrowIfError(store_->Get(prefix_ + key, timeout).status());
  }

 private:
  static void ThrowIfError(const absl::Status& status) {
    if (!status.ok()) throw ::gloo::IoException(std::string(status.message()));
  }
  group::KeyValueStore* store_;
  std::string prefix_;
  Duration timeout_;
};

class GlooCommunicator final : public Communicator {
 public:
  GlooCommunicator(const GlooOptions& options, std::unique_ptr<::gloo::rendezvous::Context> context,
                   kernels::Backend* backend)
      : options_(options), context_(std::move(context)), backend_(backend) {}

  int rank() const override { return options_.rank; }
  int size() const override { return options_.size; }

  void AllReduceSum(kernels::Matrix<const float> partial, kernels::FloatMatrix sum) override {
    const int64_t count = partial.rows * partial.cols;
    if (count == 0) return;
    Guarded("all-reduce", [&] {
      float* values = static_cast<float*>(sum.data);
      if (!IsContiguous(partial) || partial.data != sum.data) {
        packed_.resize(static_cast<size_t>(count));
        Pack(partial, packed_.data());
        values = packed_.data();
      }
      if (count * kFloatBytes <= options_.one_shot_bytes) {
        OneShotSum(values, count);
      } else {
        PartedSum(values, count);
      }
      if (values != sum.data) Store(values, sum);
    });
  }

  void GatherColumns(kernels::Matrix<const float> local, kernels::Matrix<float> out) override {
    const int64_t count = local.rows * local.cols;
    if (count == 0) return;
    Guarded("gather", [&] {
      if (rank() != 0) {
        packed_.resize(static_cast<size_t>(count));
        Pack(local, packed_.data());
        const auto sent = Register(packed_.data(), count * kFloatBytes);
        sent->send(0, slot_);
        WaitSends(*sent, 1);
        return;
      }
      const auto received = Register(Scratch(count * size()), count * size() * kFloatBytes);
      for (int r = 1; r < size(); ++r) ReceivePart(*received, r, r * count, count);
      Pack(local, scratch_.data());
      WaitReceives(*received, size() - 1);
      for (int r = 0; r < size(); ++r) {
        Unpack(scratch_.data() + r * count, local.cols, r * local.cols, out);
      }
    });
  }

  void BroadcastIds(int32_t* ids, int64_t count) override {
    if (count == 0) return;
    Guarded("broadcast", [&] {
      const auto buffer = Register(ids, count * static_cast<int64_t>(sizeof(int32_t)));
      if (rank() != 0) {
        buffer->recv(0, slot_);
        WaitReceives(*buffer, 1);
        return;
      }
      for (int r = 1; r < size(); ++r) buffer->send(r, slot_);
      WaitSends(*buffer, size() - 1);
    });
  }

  void Abort() override {
    aborted_ = true;
    {
      const std::lock_guard lock(mutex_);
      for (GlooBuffer* buffer : registered_) {
        buffer->abortWaitRecv();
        buffer->abortWaitSend();
      }
    }
    // Peers that wait for this rank see their connections end.
    try {
      context_->closeConnections();
    } catch (const std::exception& error) {
      LOG_WARN("closing Gloo's connections: {}", error.what());
    }
  }

 private:
  static constexpr int64_t kFloatBytes = sizeof(float);

  struct Unregister {
    GlooCommunicator* owner = nullptr;
    void operator()(GlooBuffer* buffer) const {
      {
        const std::lock_guard lock(owner->mutex_);
        std::erase(owner->registered_, buffer);
      }
      delete buffer;
    }
  };
  using Registered = std::unique_ptr<GlooBuffer, Unregister>;

  // Runs one collective in its own slots; whatever goes wrong is latched, here and in the backend.
  void Guarded(const char* what, const std::function<void()>& collective) {
    backend_->Synchronize();
    slot_ += 2;  // the same on every rank, since all make the same calls
    if (failure_.empty()) {
      try {
        collective();
        return;
      } catch (const std::exception& error) {
        failure_ = aborted_ ? std::string("aborted") : std::string(error.what());
      }
      if (!aborted_) Abort();
    }
    backend_->Fail({kernels::StatusCode::kDevice,
                    fmt::format("{} between the ranks failed: {}", what, failure_)});
  }

  // A buffer over memory of ours that Abort can reach while it is waited for.
  Registered Register(void* data, int64_t bytes) {
    Registered buffer(context_->createUnboundBuffer(data, static_cast<size_t>(bytes)).release(),
                      Unregister{this});
    const std::lock_guard lock(mutex_);
    registered_.push_back(buffer.get());
    return buffer;
  }

  float* Scratch(int64_t count) {
    if (std::cmp_less(scratch_.size(), count)) scratch_.resize(static_cast<size_t>(count));
    return scratch_.data();
  }

  void SendPart(GlooBuffer& buffer, int to, int64_t first, int64_t count, uint64_t phase = 0) {
    if (count == 0) return;
    buffer.send(to, slot_ + phase, static_cast<size_t>(first * kFloatBytes),
                static_cast<size_t>(count * kFloatBytes));
  }
  void ReceivePart(GlooBuffer& buffer, int from, int64_t first, int64_t count, uint64_t phase = 0) {
    if (count == 0) return;
    buffer.recv(from, slot_ + phase, static_cast<size_t>(first * kFloatBytes),
                static_cast<size_t>(count * kFloatBytes));
  }
  void WaitSends(GlooBuffer& buffer, int count) {
    for (int i = 0; i < count; ++i) {
      CheckNotAborted();
      if (!buffer.waitSend(nullptr, Milliseconds(options_.collective_timeout))) ThrowAborted();
    }
  }
  void WaitReceives(GlooBuffer& buffer, int count) {
    for (int i = 0; i < count; ++i) {
      CheckNotAborted();
      if (!buffer.waitRecv(nullptr, Milliseconds(options_.collective_timeout))) ThrowAborted();
    }
  }
  void CheckNotAborted() const {
    if (aborted_) ThrowAborted();
  }
  [[noreturn]] static void ThrowAborted() { throw ::gloo::IoException("aborted"); }

  // Everybody's whole message to everybody, then the same sum everywhere.
  void OneShotSum(float* values, int64_t count) {
    const auto received = Register(Scratch(count * size()), count * size() * kFloatBytes);
    const auto sent = Register(values, count * kFloatBytes);
    for (int r = 0; r < size(); ++r) {
      if (r != rank()) ReceivePart(*received, r, r * count, count);
    }
    for (int r = 0; r < size(); ++r) {
      if (r != rank()) SendPart(*sent, r, 0, count);
    }
    WaitReceives(*received, size() - 1);
    WaitSends(*sent, size() - 1);
    std::vector<const float*> inputs;
    for (int r = 0; r < size(); ++r) {
      inputs.push_back(r == rank() ? values : scratch_.data() + r * count);
    }
    SumInRankOrder(inputs.data(), size(), count, values);
  }

  // Part p of every message to rank p, which adds the parts and sends the sum to everybody.
  void PartedSum(float* values, int64_t count) {
    const auto first = [&](int part) { return count * part / size(); };
    const auto length = [&](int part) { return first(part + 1) - first(part); };
    const int64_t mine = length(rank());
    const auto received = Register(Scratch(mine * size()), mine * size() * kFloatBytes);
    const auto whole = Register(values, count * kFloatBytes);
    int sends = 0;
    for (int r = 0; r < size(); ++r) {
      if (r == rank()) continue;
      ReceivePart(*received, r, r * mine, mine);
      SendPart(*whole, r, first(r), length(r));
      if (length(r) > 0) ++sends;
    }
    if (mine > 0) WaitReceives(*received, size() - 1);
    WaitSends(*whole, sends);  // the parts sent are overwritten from here on
    std::vector<const float*> inputs;
    for (int r = 0; r < size(); ++r) {
      inputs.push_back(r == rank() ? values + first(r) : scratch_.data() + r * mine);
    }
    SumInRankOrder(inputs.data(), size(), mine, values + first(rank()));
    int receives = 0;
    for (int r = 0; r < size(); ++r) {
      if (r == rank()) continue;
      ReceivePart(*whole, r, first(r), length(r), 1);
      SendPart(*whole, r, first(rank()), mine, 1);
      if (length(r) > 0) ++receives;
    }
    WaitReceives(*whole, receives);
    if (mine > 0) WaitSends(*whole, size() - 1);
  }

  GlooOptions options_;
  std::unique_ptr<::gloo::rendezvous::Context> context_;
  kernels::Backend* backend_;
  uint64_t slot_ = 0;
  std::string failure_;
  std::vector<float> packed_;
  std::vector<float> scratch_;
  std::atomic<bool> aborted_{false};
  std::mutex mutex_;
  std::vector<GlooBuffer*> registered_;  // under mutex_
};

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> CreateGlooCommunicator(const GlooOptions& options,
                                                                     group::KeyValueStore* store,
                                                                     kernels::Backend* backend) {
  QSERVE_CHECK(options.size > 0 && options.rank >= 0 && options.rank < options.size);
  try {
    std::shared_ptr<::gloo::transport::Device> device =
        ::gloo::transport::tcp::CreateDevice(options.bind_host.c_str());
    auto context = std::make_unique<::gloo::rendezvous::Context>(options.rank, options.size);
    // While it connects, Gloo waits five times as long as it is told to.
    context->setTimeout(std::max(Milliseconds(options.connect_timeout) / 5, milliseconds(1)));
    GlooStore gloo_store(store, options.key_prefix, options.connect_timeout);
    context->connectFullMesh(gloo_store, device);
    return std::unique_ptr<Communicator>(
        new GlooCommunicator(options, std::move(context), backend));
  } catch (const std::exception& error) {
    return absl::UnavailableError(
        fmt::format("rank {} could not connect to the other ranks by Gloo on {}: {}", options.rank,
                    options.bind_host, error.what()));
  }
}

}  // namespace qserve::worker::comm
