# The gRPC edge and the router over engines without a model, and the real processes.
qserve_test(edge_server_test
  SOURCES edge_server_test.cc
  DEPS fakes_executor worker_comm worker_serve LABELS integration TIMEOUT 300)
qserve_test(edge_ending_test
  SOURCES edge_ending_test.cc
  DEPS fakes_executor worker_comm worker_serve LABELS integration TIMEOUT 300)
qserve_test(edge_hostile_test
  SOURCES edge_hostile_test.cc
  DEPS fakes_executor worker_comm worker_serve LABELS integration TIMEOUT 300)
qserve_test(router_test
  SOURCES router_test.cc
  DEPS fakes_executor router worker_comm worker_serve LABELS integration TIMEOUT 300)
qserve_test(router_small_calls_test
  SOURCES router_small_calls_test.cc
  DEPS fakes_executor router worker_comm worker_serve LABELS integration TIMEOUT 300)
qserve_test(router_failover_test
  SOURCES router_failover_test.cc
  DEPS fakes_executor router worker_comm worker_serve LABELS integration TIMEOUT 300)
if(TARGET qserve-worker AND TARGET qserve-router AND TARGET qserve-quantize)
  qserve_test(process_test SOURCES process_test.cc DEPS common_rpc proto LABELS integration TIMEOUT 300)
  add_dependencies(process_test qserve-worker qserve-router qserve-quantize)
  target_compile_definitions(process_test PRIVATE
    QSERVE_WORKER="$<TARGET_FILE:qserve-worker>" QSERVE_ROUTER="$<TARGET_FILE:qserve-router>"
    QSERVE_QUANTIZE="$<TARGET_FILE:qserve-quantize>")
endif()
