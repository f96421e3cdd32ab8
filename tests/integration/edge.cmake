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
qserve_test(edge_garbage_test
  SOURCES edge_garbage_test.cc
  DEPS fakes_executor router worker_comm worker_serve LABELS integration TIMEOUT 300)
qserve_test(router_test
  SOURCES router_test.cc
  DEPS fakes_executor router worker_comm worker_serve LABELS integration TIMEOUT 300)
qserve_test(router_small_calls_test
  SOURCES router_small_calls_test.cc
  DEPS fakes_executor router worker_comm worker_serve LABELS integration TIMEOUT 300)
qserve_test(router_failover_test
  SOURCES router_failover_test.cc
  DEPS fakes_executor router worker_comm worker_serve LABELS integration TIMEOUT 300)
if(TARGET qserve-worker AND TARGET qserve-router AND TARGET qserve-quantize AND TARGET qserve)
  qserve_test(process_test SOURCES process_test.cc DEPS common_rpc proto LABELS integration TIMEOUT 300)
  qserve_test(process_network_test
    SOURCES process_network_test.cc
    LIBS nlohmann_json::nlohmann_json LABELS integration TIMEOUT 300)
  # Long enough to be struck in the middle; the sanitizers slow the model down.
  if(QSERVE_SANITIZE)
    target_compile_definitions(process_test PRIVATE QSERVE_STREAM_TOKENS=150)
  else()
    target_compile_definitions(process_test PRIVATE QSERVE_STREAM_TOKENS=700)
  endif()
  foreach(test process_test process_network_test)
    add_dependencies(${test} qserve-worker qserve-router qserve-quantize qserve)
    target_compile_definitions(${test} PRIVATE
      QSERVE_WORKER="$<TARGET_FILE:qserve-worker>" QSERVE_ROUTER="$<TARGET_FILE:qserve-router>"
      QSERVE_QUANTIZE="$<TARGET_FILE:qserve-quantize>" QSERVE_CLIENT="$<TARGET_FILE:qserve>")
  endforeach()
endif()
if(TARGET qserve-worker)
  qserve_test(process_numa_test SOURCES process_numa_test.cc LABELS integration TIMEOUT 300)
  add_dependencies(process_numa_test qserve-worker)
  target_compile_definitions(process_numa_test PRIVATE QSERVE_WORKER="$<TARGET_FILE:qserve-worker>")
endif()
if(TARGET qserve-quantize)
  qserve_test(process_quantize_test SOURCES process_quantize_test.cc DEPS worker_checkpoint LABELS integration TIMEOUT 300)
  add_dependencies(process_quantize_test qserve-quantize)
  target_compile_definitions(process_quantize_test PRIVATE QSERVE_QUANTIZE="$<TARGET_FILE:qserve-quantize>")
endif()
