#include "worker/comm/nccl_communicator.h"

#include <algorithm>
#include <cstddef>
#include <functional>
#include <thread>
#include <utility>

#include <fmt/format.h>

#include "common/check.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "kernels/cuda/rank_sum.h"
#include "worker/comm/nccl_plan.h"
#include "worker/comm/nccl_rendezvous.h"
#include "worker/comm/nccl_watch.h"

namespace qserve::worker::comm {
namespace {

using kernels::FloatMatrix;
using kernels::FloatType;
using kernels::Matrix;
using kernels::cuda::RankSumLaunch;

constexpr int64_t kFloatBytes = sizeof(float);

TimePoint Now() { return SteadyClock().Now(); }

FloatMatrix RowsOf(const FloatMatrix& m, int64_t first, int64_t rows) {
  auto* data = static_cast<std::byte*>(m.data) + first * m.stride * kernels::BytesOf(m.type);
  return {data, m.type, rows, m.cols, m.stride};
}

Matrix<const float> RowsOf(const Matrix<const float>& m, int64_t first, int64_t rows) {
  return {m.row(first), rows, m.cols, m.stride};
}

// Elements [first, first + count) of a matrix without gaps.
FloatMatrix Flat(const FloatMatrix& m, int64_t first, int64_t count) {
  auto* data = static_cast<std::byte*>(m.data) + first * kernels::BytesOf(m.type);
  return {data, m.type, 1, count, count};
}

template <class M>
bool Contiguous(const M& m) {
  return m.stride == m.cols || m.rows <= 1;
}

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(const NcclOptions& options, kernels::cuda::CudaStreamOwner* owner,
                   std::unique_ptr<NcclApi> api)
      : options_(options),
        owner_(owner),
        api_(std::move(api)),
        watch_({.rank = options.rank,
                .step_timeout = options.step_timeout,
                .interval = options.watch_interval},
               owner, api_.get()) {}

  ~NcclCommunicator() override {
    if (!watch_.begun()) return;
    // NCCL waits for graphs that hold its work, so they go first, after a failure too.
    owner_->DropGraphs();
    watch_.Close();
  }

  int rank() const override { return options_.rank; }
  int size() const override { return options_.size; }

  absl::Status Start(group::KeyValueStore* store, kernels::Backend* backend);

  void AllReduceSum(Matrix<const float> partial, FloatMatrix sum) override;
  void GatherColumns(Matrix<const float> local, Matrix<float> out) override;
  void BroadcastIds(int32_t* ids, int64_t count) override;
  void Abort() override { watch_.Break("aborted"); }

 private:
  float* workspace() const { return workspace_.as<float>(); }
  int64_t workspace_floats() const { return workspace_.bytes() / kFloatBytes; }

  bool Usable();
  // Asking for the stream launches what was held back, which may fail: a call enqueued all the same
  // would meet another one of its peers.
  bool MayEnqueue() {
    if (!owner_->Issuing()) return false;
    owner_->stream();
    return owner_->Issuing();
  }
  bool Issue(const char* what, const std::function<NcclResult()>& calls);
  NcclResult Group(const std::function<NcclResult()>& calls);
  absl::Status WaitConnected();
  void PlaceMark();
  void Launch(const RankSumLaunch& launch);
  void Copy(const Matrix<const float>& from, const FloatMatrix& to);
  void OneShotSum(const Matrix<const float>& partial, const FloatMatrix& sum);
  void PartedSum(const Matrix<const float>& partial, const FloatMatrix& sum);
  NcclResult ExchangeParts(const Matrix<const float>& partial);
  NcclResult BroadcastParts(const FloatMatrix& sum);

  const NcclOptions options_;
  kernels::cuda::CudaStreamOwner* const owner_;
  const std::unique_ptr<NcclApi> api_;
  kernels::Buffer workspace_;
  NcclWatch watch_;  // last: its threads use what is above
};

absl::Status NcclCommunicator::Start(group::KeyValueStore* store, kernels::Backend* backend) {
  auto workspace = backend->Allocate(options_.workspace_bytes, "collectives");
  if (!workspace.ok()) return absl::ResourceExhaustedError(workspace.status().message());
  workspace_ = *std::move(workspace);
  std::string id;
  if (rank() == 0 && api_->NewId(&id) == NcclResult::kFailed) {
    return absl::UnavailableError("NCCL cannot make a group: " + api_->ErrorText());
  }
  ASSIGN_OR_RETURN(id, ShareNcclId(options_, store, id));
  if (api_->Connect(size(), rank(), id) == NcclResult::kFailed) {
    return absl::UnavailableError("NCCL cannot connect: " + api_->ErrorText());
  }
  const absl::Status connected = WaitConnected();
  if (!connected.ok()) {
    api_->Abort();
    return connected;
  }
  watch_.Begin();
  return absl::OkStatus();
}

absl::Status NcclCommunicator::WaitConnected() {
  const TimePoint deadline = Now() + options_.connect_timeout;
  for (;; std::this_thread::sleep_for(std::chrono::microseconds(50))) {
    const NcclResult state = api_->State();
    if (state == NcclResult::kOk) return absl::OkStatus();
    if (state == NcclResult::kFailed) {
      return absl::UnavailableError(
          fmt::format("rank {} of {} could not connect to the other GPUs by NCCL: {}", rank(),
                      size(), api_->ErrorText()));
    }
    if (Now() >= deadline) {
      return absl::DeadlineExceededError(fmt::format(
          "rank {} of {} waited in vain for the other GPUs to connect by NCCL", rank(), size()));
    }
  }
}

// Whether work is to be issued now. After a failure every step fails.
bool NcclCommunicator::Usable() {
  if (const std::string failure = watch_.failure(); !failure.empty()) {
    owner_->Fail({kernels::StatusCode::kDevice, "a collective of the group failed: " + failure});
    return false;
  }
  return owner_->Issuing();
}

// Makes NCCL's calls and returns when they are on the stream, so that what comes next comes after
// them. A communicator that does not block may put them there on a thread of its own: it then says
// so (in progress), and may not be called again before its state is another; this thread has
// nothing else to do, asks and does not sleep. False: failed.
bool NcclCommunicator::Issue(const char* what, const std::function<NcclResult()>& calls) {
  if (!MayEnqueue()) return false;
  std::string trouble;
  const auto ask = [&](const std::function<NcclResult()>& call) {
    if (!watch_.Enter()) return NcclResult::kFailed;
    const NcclResult result = call();
    if (result == NcclResult::kFailed) trouble = fmt::format("{}: {}", what, api_->ErrorText());
    watch_.Leave();
    return result;
  };
  NcclResult result = ask(calls);
  if (result == NcclResult::kInProgress) {
    const TimePoint deadline = Now() + options_.step_timeout;
    while ((result = ask([&] { return api_->State(); })) == NcclResult::kInProgress) {
      if (Now() >= deadline) {
        trouble = fmt::format("{} was not begun within its time", what);
        break;
      }
      std::this_thread::yield();
    }
  }
  if (!trouble.empty()) watch_.Break(trouble);
  return result == NcclResult::kOk;
}

// Inside Issue. What the end of the group returns counts: within it nothing is begun.
NcclResult NcclCommunicator::Group(const std::function<NcclResult()>& calls) {
  if (api_->GroupStart() == NcclResult::kFailed) return NcclResult::kFailed;
  const NcclResult inside = calls();
  const NcclResult end = api_->GroupEnd();
  return inside == NcclResult::kFailed ? inside : end;
}

void NcclCommunicator::Launch(const RankSumLaunch& launch) {
  if (!MayEnqueue()) return;
  const kernels::cuda::DeviceError error = LaunchRankSum(owner_->stream(), launch);
  if (error != 0) {
    owner_->Fail({kernels::StatusCode::kDevice,
                  fmt::format("the sum over ranks could not be launched: CUDA error {}", error)});
  }
}

void NcclCommunicator::Copy(const Matrix<const float>& from, const FloatMatrix& to) {
  Launch({.gathered = from.data, .row_stride = from.stride, .out = to});
}

void NcclCommunicator::AllReduceSum(Matrix<const float> partial, FloatMatrix sum) {
  if (!Usable()) return;
  const auto pieces = PlanSum({.rows = partial.rows,
                               .cols = partial.cols,
                               .contiguous = Contiguous(partial) && Contiguous(sum),
                               .ranks = size(),
                               .one_shot_floats = options_.one_shot_bytes / kFloatBytes,
                               .workspace_floats = workspace_floats()});
  if (!pieces.ok()) {
    return owner_->Fail(
        {kernels::StatusCode::kInvalidArgument, std::string(pieces.status().message())});
  }
  for (const SumPiece& piece : *pieces) {
    const Matrix<const float> from = RowsOf(partial, piece.first_row, piece.rows);
    const FloatMatrix to = RowsOf(sum, piece.first_row, piece.rows);
    piece.parted ? PartedSum(from, to) : OneShotSum(from, to);
  }
  PlaceMark();
}

// Everybody's rows to everybody, then the same sum everywhere.
void NcclCommunicator::OneShotSum(const Matrix<const float>& partial, const FloatMatrix& sum) {
  const int64_t count = partial.rows * partial.cols;
  const float* mine = partial.data;
  if (!Contiguous(partial)) {
    float* packed = workspace() + rank() * count;
    Copy(partial, Matrix<float>{packed, partial.rows, partial.cols, partial.cols});
    mine = packed;
  }
  const bool issued = Issue("all-gather", [&] {
    return api_->AllGather(mine, workspace(), count * kFloatBytes, owner_->stream());
  });
  if (!issued) return;
  Launch({.gathered = workspace(),
          .rank_stride = count,
          .row_stride = partial.cols,
          .ranks = size(),
          .out = sum});
}

// Part p of every message to rank p, which adds the parts and sends the sum to everybody.
void NcclCommunicator::PartedSum(const Matrix<const float>& partial, const FloatMatrix& sum) {
  const int64_t count = partial.rows * partial.cols;
  const Part mine = PartOf(count, size(), rank());
  const bool exchanged =
      Issue("all-to-all", [&] { return Group([&] { return ExchangeParts(partial); }); });
  if (!exchanged) return;
  Launch({.gathered = workspace(),
          .rank_stride = PartOf(count, size(), 0).count,
          .ranks = size(),
          .own_rank = rank(),
          .own = partial.data + mine.first,
          .out = Flat(sum, mine.first, mine.count)});
  Issue("all-gather of sums", [&] {
    if (!EvenParts(count, size())) return Group([&] { return BroadcastParts(sum); });
    const FloatMatrix part = Flat(sum, mine.first, mine.count);
    return api_->AllGather(part.data, sum.data, mine.count * kernels::BytesOf(sum.type),
                           owner_->stream());
  });
}

NcclResult NcclCommunicator::ExchangeParts(const Matrix<const float>& partial) {
  const int64_t count = partial.rows * partial.cols;
  const int64_t stride = PartOf(count, size(), 0).count;
  const Part mine = PartOf(count, size(), rank());
  for (int r = 0; r < size(); ++r) {
    if (r == rank()) continue;
    const Part theirs = PartOf(count, size(), r);
    NcclResult result = NcclResult::kOk;
    if (mine.count > 0) {
      result =
          api_->Receive(workspace() + r * stride, mine.count * kFloatBytes, r, owner_->stream());
    }
    if (result != NcclResult::kFailed && theirs.count > 0) {
      result =
          api_->Send(partial.data + theirs.first, theirs.count * kFloatBytes, r, owner_->stream());
    }
    if (result == NcclResult::kFailed) return result;
  }
  return NcclResult::kOk;
}

NcclResult NcclCommunicator::BroadcastParts(const FloatMatrix& sum) {
  const int64_t count = sum.rows * sum.cols;
  for (int r = 0; r < size(); ++r) {
    const Part part = PartOf(count, size(), r);
    if (part.count == 0) continue;
    const FloatMatrix place = Flat(sum, part.first, part.count);
    const NcclResult result =
        api_->Broadcast(place.data, part.count * kernels::BytesOf(sum.type), r, owner_->stream());
    if (result == NcclResult::kFailed) return result;
  }
  return NcclResult::kOk;
}

void NcclCommunicator::GatherColumns(Matrix<const float> local, Matrix<float> out) {
  if (local.rows * local.cols == 0 || !Usable()) return;
  const int64_t at_once = RowsThatFit(local.cols, size(), workspace_floats());
  if (at_once == 0) {
    return owner_->Fail({kernels::StatusCode::kInvalidArgument,
                         fmt::format("a row of {} columns of each rank does not fit into {} bytes",
                                     local.cols, options_.workspace_bytes)});
  }
  for (int64_t first = 0; first < local.rows; first += at_once) {
    const Matrix<const float> mine = RowsOf(local, first, std::min(at_once, local.rows - first));
    const int64_t count = mine.rows * mine.cols;
    const auto place = [&](int r) {
      return Matrix<float>{out.row(first) + r * mine.cols, mine.rows, mine.cols, out.stride};
    };
    if (rank() != 0) {
      const float* packed = mine.data;
      if (!Contiguous(mine)) {
        Copy(mine, Matrix<float>{workspace(), mine.rows, mine.cols, mine.cols});
        packed = workspace();
      }
      Issue("gather", [&] {
        return Group([&] { return api_->Send(packed, count * kFloatBytes, 0, owner_->stream()); });
      });
      continue;
    }
    if (place(0).data != mine.data) Copy(mine, place(0));
    const bool received = size() == 1 || Issue("gather", [&] {
                            return Group([&] {
                              NcclResult result = NcclResult::kOk;
                              for (int r = 1; r < size() && result != NcclResult::kFailed; ++r) {
                                result = api_->Receive(workspace() + r * count, count * kFloatBytes,
                                                       r, owner_->stream());
                              }
                              return result;
                            });
                          });
    for (int r = 1; r < size() && received; ++r) {
      Copy({workspace() + r * count, mine.rows, mine.cols, mine.cols}, place(r));
    }
  }
  PlaceMark();
}

void NcclCommunicator::BroadcastIds(int32_t* ids, int64_t count) {
  if (count == 0 || !Usable()) return;
  Issue("broadcast", [&] {
    return api_->Broadcast(ids, count * int64_t{sizeof(int32_t)}, 0, owner_->stream());
  });
  PlaceMark();
}

// The watchdog times how long the stream takes to get from here to the next mark. One at a time: a
// mark that moved with the work would never be reached.
void NcclCommunicator::PlaceMark() {
  if (!MayEnqueue() || owner_->Recording()) return;
  if (!watch_.MayMark() || !watch_.Enter()) return;
  const bool placed = api_->Mark(owner_->stream()) != NcclResult::kFailed;
  const std::string text = placed ? "" : api_->ErrorText();
  watch_.Leave();
  if (placed) return watch_.MarkPlaced();
  LOG_WARN("no mark could be placed in the stream: {}", text);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> ConnectNccl(const NcclOptions& options,
                                                          group::KeyValueStore* store,
                                                          kernels::Backend* backend,
                                                          kernels::cuda::CudaStreamOwner* owner,
                                                          std::unique_ptr<NcclApi> api) {
  QSERVE_CHECK(options.size > 0 && options.rank >= 0 && options.rank < options.size);
  auto communicator = std::make_unique<NcclCommunicator>(options, owner, std::move(api));
  RETURN_IF_ERROR(communicator->Start(store, backend));
  return std::unique_ptr<Communicator>(std::move(communicator));
}

}  // namespace qserve::worker::comm
