#include "bench/load.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <list>
#include <memory>
#include <mutex>

#include "bench/workload.h"
#include "client/answer.h"
#include "common/rpc/errors.h"

namespace qserve::bench {
namespace {

using SteadyTime = std::chrono::steady_clock::time_point;
constexpr std::chrono::milliseconds kLookForInterrupt{100};

class Load;

// One request. gRPC calls its reactions one after the other; `record` is the load's, and nobody
// else's until OnDone.
class Stream final : public grpc::ClientReadReactor<v1::StreamGenerateResponse> {
 public:
  Stream(Load& load, RequestRecord& record, SteadyTime load_start);
  void Start(client::Connection& connection, const LoadOptions& options,
             const v1::StreamGenerateRequest& request);
  void Cancel() { context_.TryCancel(); }

  void OnReadDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

 private:
  Load& load_;
  RequestRecord& record_;
  const SteadyTime load_start_;
  client::Answer answer_;
  absl::Status problem_;
  grpc::ClientContext context_;
  v1::StreamGenerateRequest request_;
  v1::StreamGenerateResponse chunk_;
};

class Load {
 public:
  Load(client::Connection& connection, const LoadOptions& options)
      : connection_(connection), options_(options) {}

  std::vector<RequestRecord> Run() {
    const auto count = static_cast<size_t>(options_.requests);
    std::vector<RequestRecord> records(count);
    const std::vector<double> arrivals =
        options_.rate > 0 ? PoissonArrivals(options_.seed, options_.requests, options_.rate)
                          : std::vector<double>();
    const SteadyTime start = std::chrono::steady_clock::now();
    size_t started = 0;
    for (; started < count; ++started) {
      if (!arrivals.empty() && !SleepUntil(start, arrivals[started])) break;
      if (!WaitUntilFewerThan(static_cast<size_t>(options_.concurrency))) break;
      RequestRecord& record = records[started];
      const std::chrono::duration<double> now = std::chrono::steady_clock::now() - start;
      record.due = arrivals.empty() ? now.count() : arrivals[started];
      StartOne(static_cast<int64_t>(started), record, start);
    }
    records.resize(started);
    if (!WaitUntilFewerThan(1)) CancelAll();
    return records;
  }

  void OnOver(Stream* stream) {
    const std::lock_guard lock(mutex_);
    std::erase_if(open_, [stream](const auto& open) { return open.get() == stream; });
    changed_.notify_all();
  }

 private:
  void StartOne(int64_t index, RequestRecord& record, SteadyTime start) {
    v1::StreamGenerateRequest request;
    v1::GenerationSpec& spec = *request.mutable_spec();
    spec.set_model(options_.model);
    const std::vector<int32_t> ids =
        RandomPrompt(options_.seed, index, options_.prompt_length, options_.vocabulary);
    spec.mutable_prompt()->mutable_token_ids()->mutable_ids()->Assign(ids.begin(), ids.end());
    spec.mutable_sampling()->set_temperature(0);
    spec.mutable_sampling()->set_seed(options_.seed);
    spec.mutable_stopping()->set_max_tokens(options_.output_length);
    spec.mutable_stopping()->set_ignore_eos(true);
    auto stream = std::make_unique<Stream>(*this, record, start);
    Stream& started = *stream;
    {
      const std::lock_guard lock(mutex_);
      open_.push_back(std::move(stream));
    }
    started.Start(connection_, options_, request);
  }

  // False after an interrupt.
  bool SleepUntil(SteadyTime start, double seconds) {
    const SteadyTime until = start + std::chrono::duration_cast<std::chrono::nanoseconds>(
                                         std::chrono::duration<double>(seconds));
    std::unique_lock lock(mutex_);
    while (std::chrono::steady_clock::now() < until && !connection_.interrupt().tripped()) {
      idle_.wait_until(lock, std::min(until, std::chrono::steady_clock::now() + kLookForInterrupt));
    }
    return !connection_.interrupt().tripped();
  }

  // False after an interrupt.
  bool WaitUntilFewerThan(size_t streams) {
    std::unique_lock lock(mutex_);
    while (open_.size() >= streams && !connection_.interrupt().tripped())
      changed_.wait_for(lock, kLookForInterrupt);
    return !connection_.interrupt().tripped();
  }

  void CancelAll() {
    std::unique_lock lock(mutex_);
    for (const auto& stream : open_) stream->Cancel();
    changed_.wait(lock, [this] { return open_.empty(); });
  }

  client::Connection& connection_;
  const LoadOptions& options_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::condition_variable idle_;             // never notified: a sleep that releases the mutex
  std::list<std::unique_ptr<Stream>> open_;  // guarded by mutex_
};

Stream::Stream(Load& load, RequestRecord& record, SteadyTime load_start)
    : load_(load),
      record_(record),
      load_start_(load_start),
      answer_(std::chrono::steady_clock::now()) {}

void Stream::Start(client::Connection& connection, const LoadOptions& options,
                   const v1::StreamGenerateRequest& request) {
  request_ = request;
  context_.set_deadline(
      std::chrono::system_clock::now() +
      std::chrono::milliseconds(static_cast<int64_t>(options.timeout_seconds * 1000)));
  connection.inference().async()->StreamGenerate(&context_, &request_, this);
  StartRead(&chunk_);
  StartCall();
}

void Stream::OnReadDone(bool ok) {
  if (!ok) return;
  const SteadyTime now = std::chrono::steady_clock::now();
  if (problem_.ok()) problem_ = answer_.Add(chunk_, now);
  if (!problem_.ok()) {
    context_.TryCancel();
  } else if (chunk_.token_ids_size() > 0) {
    record_.end = std::chrono::duration<double>(now - load_start_).count();
    if (record_.tokens == 0) record_.first_token = record_.end;
    record_.tokens += chunk_.token_ids_size();
  }
  StartRead(&chunk_);
}

void Stream::OnDone(const grpc::Status& status) {
  if (problem_.ok() && status.ok()) problem_ = answer_.Finish(1);
  if (!problem_.ok()) {
    record_.error = "INCOMPLETE_STREAM";
  } else if (!status.ok()) {
    const std::string reason = rpc::ReasonOf(status);
    record_.error = reason.empty() ? client::CodeName(status.error_code()) : reason;
  } else if (record_.tokens == 0) {
    record_.error = "NO_TOKENS";
  }
  load_.OnOver(this);  // deletes this
}

}  // namespace

std::vector<RequestRecord> RunLoad(client::Connection& connection, const LoadOptions& options) {
  return Load(connection, options).Run();
}

}  // namespace qserve::bench
