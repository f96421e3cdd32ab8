# gpu_offline: a whole model on a GPU, carried to machines without this project's libraries, so that nothing of gRPC or Rust is in it.
# Included by CMakeLists.txt of this folder, after qserve_bench.cmake.
qserve_binary(gpu_offline SOURCES gpu_offline.cc DEPS bench_offline bench_make_model common common_cli kernels)
