# qserve-bench: measurements of whole systems. Included by CMakeLists.txt of this folder, after make_model.cmake.
qserve_library(bench_measure SOURCES statistics.cc workload.cc DEPS common)
# Engine and model without gRPC.
qserve_library(bench_offline SOURCES memory.cc offline.cc profile.cc
               DEPS bench_measure common kernels worker_comm worker_engine worker_exec
               LIBS absl::status absl::statusor nlohmann_json::nlohmann_json)
qserve_library(bench_load SOURCES load.cc load_report.cc DEPS bench_measure client common_rpc proto)

# The commit is looked up at each build; only machine.cc depends on it.
set(commit_header ${PROJECT_BINARY_DIR}/generated/bench/commit.h)
add_custom_target(bench_commit
  COMMAND ${CMAKE_COMMAND} -DSOURCE=${PROJECT_SOURCE_DIR} -DOUTPUT=${commit_header} -P ${CMAKE_CURRENT_SOURCE_DIR}/commit.cmake
  BYPRODUCTS ${commit_header}
  VERBATIM)
qserve_binary(qserve-bench SOURCES main.cc machine.cc DEPS bench_offline bench_load bench_make_model common common_cli worker_exec_flags worker_group)
target_include_directories(qserve-bench PRIVATE ${PROJECT_BINARY_DIR}/generated)
add_dependencies(qserve-bench bench_commit)

qserve_binary(communicator_bench SOURCES communicator_bench.cc DEPS bench_measure common kernels worker_comm)
qserve_binary(engine_bench SOURCES engine_bench.cc DEPS bench_measure common worker_comm worker_engine)
