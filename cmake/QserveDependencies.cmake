# Everything from outside, in one place, as imported targets. deploy/setup.sh installs what is looked for here.
find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)

find_package(absl REQUIRED)
find_package(Protobuf REQUIRED)
find_package(gRPC CONFIG REQUIRED)
find_package(prometheus-cpp CONFIG REQUIRED)
find_package(spdlog CONFIG REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(CLI11 CONFIG REQUIRED)
find_package(yaml-cpp CONFIG REQUIRED)
find_package(Eigen3 CONFIG REQUIRED)
pkg_check_modules(XXHASH REQUIRED IMPORTED_TARGET libxxhash)

# Debian's package file of oneDNN asks for OpenCL, which its CPU engine does not need: the library is looked for itself.
find_library(QSERVE_DNNL_LIBRARY dnnl REQUIRED)
find_path(QSERVE_DNNL_INCLUDE dnnl.hpp REQUIRED)

# Debian's Gloo has no CMake package file.
find_library(QSERVE_GLOO_LIBRARY gloo REQUIRED)
find_path(QSERVE_GLOO_INCLUDE gloo/context.h REQUIRED)
if(NOT TARGET qserve_external_gloo)
  add_library(qserve_external_gloo INTERFACE)
  target_include_directories(qserve_external_gloo SYSTEM INTERFACE ${QSERVE_GLOO_INCLUDE})
  target_link_libraries(qserve_external_gloo INTERFACE ${QSERVE_GLOO_LIBRARY} Threads::Threads)
endif()

if(QSERVE_BUILD_TESTS OR NOT DEFINED QSERVE_BUILD_TESTS)
  find_package(GTest REQUIRED)
  find_package(benchmark REQUIRED)
endif()

# The CUDA compiler and its runtime library, if asked for.
include(QserveCuda)

# NCCL's header: the system's, or that of the package beside the one that nvcc came in. The library is opened at run time.
if(QSERVE_CUDA)
  list(GET CUDAToolkit_INCLUDE_DIRS 0 cuda_include)
  find_path(QSERVE_NCCL_INCLUDE nccl.h HINTS ${cuda_include}/../../nccl/include REQUIRED)
  add_library(qserve_external_nccl INTERFACE)
  target_include_directories(qserve_external_nccl SYSTEM INTERFACE ${QSERVE_NCCL_INCLUDE})
  target_link_libraries(qserve_external_nccl INTERFACE CUDA::cudart_static ${CMAKE_DL_LIBS})
endif()
