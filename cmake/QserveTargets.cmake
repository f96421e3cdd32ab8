# Macros for every target of the project. DEPS are the project's own libraries: they are the layer table, and tests/tidy checks
# the includes against it. LIBS are libraries from outside.
include_guard(GLOBAL)

# What every program carries besides its own libraries: nothing, but for the thread sanitizer (tests/sanitizers).
set(QSERVE_PROGRAM_OBJECTS "")

# Designated initializers leave out what has a default; GCC 12 warns of that as of a mistake.
set(QSERVE_WARNINGS -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror -Wno-missing-field-initializers)
# At -O3 GCC 12 takes short string literals for overlapping copies (GCC bug 105329); programs and tests are full of them.
set(QSERVE_LITERAL_WARNING -Wno-restrict)
# GCC is the compiler that rules. Clang compiles the same sources but for warnings of its own, of which one is about GCC 12's library.
if(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  list(APPEND QSERVE_WARNINGS -Wno-unused-private-field -Wno-unused-const-variable -Wno-deprecated-declarations)
  set(QSERVE_LITERAL_WARNING "")
endif()
# Instrumentation makes GCC doubt what it can see to be initialized without it.
if(QSERVE_SANITIZE)
  list(APPEND QSERVE_WARNINGS -Wno-maybe-uninitialized)
endif()
# One arithmetic everywhere: a fused multiply-add only where the source says so (docs/ARCHITECTURE.md, "Arithmetic").
set(QSERVE_ARITHMETIC -ffp-contract=off)

function(qserve_compile_options target)
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:${QSERVE_WARNINGS} ${QSERVE_ARITHMETIC}>)
  target_include_directories(${target} PUBLIC ${PROJECT_SOURCE_DIR})
endfunction()

# qserve_library(name SOURCES a.cc ... [DEPS own ...] [LIBS external ...])
function(qserve_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS;LIBS" ${ARGN})
  if(ARG_SOURCES)
    add_library(${name} STATIC ${ARG_SOURCES})
    qserve_compile_options(${name})
    target_link_libraries(${name} PUBLIC ${ARG_DEPS} ${ARG_LIBS})
  else()
    add_library(${name} INTERFACE)
    target_include_directories(${name} INTERFACE ${PROJECT_SOURCE_DIR})
    target_link_libraries(${name} INTERFACE ${ARG_DEPS} ${ARG_LIBS})
  endif()
endfunction()

# qserve_binary(name SOURCES ... DEPS ... LIBS ...): an executable in bin/.
function(qserve_binary name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS;LIBS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  qserve_compile_options(${name})
  target_compile_options(${name} PRIVATE ${QSERVE_LITERAL_WARNING})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} ${ARG_LIBS} ${QSERVE_PROGRAM_OBJECTS})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
endfunction()

# qserve_test(name SOURCES ... DEPS ... LIBS ... [LABELS ...] [TIMEOUT seconds]): a GoogleTest program, one ctest per program.
function(qserve_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;DEPS;LIBS;LABELS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  qserve_compile_options(${name})
  target_compile_options(${name} PRIVATE ${QSERVE_LITERAL_WARNING})
  target_link_libraries(${name} PRIVATE
    ${ARG_DEPS} ${ARG_LIBS} ${QSERVE_PROGRAM_OBJECTS} GTest::gmock GTest::gtest GTest::gtest_main)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  if(QSERVE_SANITIZE)
    math(EXPR ARG_TIMEOUT "8 * ${ARG_TIMEOUT}")
  endif()
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT})
  if(ARG_LABELS)
    set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}")
  endif()
endfunction()
