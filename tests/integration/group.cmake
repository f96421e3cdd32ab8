# Process groups: the supervisor, its ranks, several nodes, two network namespaces.
qserve_binary(group_test_rank SOURCES group_test_rank.cc DEPS worker_comm worker_group)
set_target_properties(group_test_rank PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)

qserve_test(group_supervisor_test SOURCES group_supervisor_test.cc DEPS worker_group LABELS integration TIMEOUT 300)
qserve_test(group_network_test SOURCES group_network_test.cc DEPS worker_group LABELS integration)
foreach(test group_supervisor_test group_network_test)
  target_compile_definitions(${test} PRIVATE QSERVE_GROUP_TEST_RANK="$<TARGET_FILE:group_test_rank>")
  add_dependencies(${test} group_test_rank)
endforeach()
