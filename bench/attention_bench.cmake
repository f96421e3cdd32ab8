# attention_bench: speed of attention and of the smaller floating-point operations. Included by CMakeLists.txt of this folder, after
# kernels_bench.cmake, whose measuring of the machine it shares.
set(attention_bench_sources ${sources})
list(REMOVE_ITEM attention_bench_sources kernels_bench.cc)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  list(APPEND attention_bench_sources float_peak_x86.cc float_peak_avx2.cc float_peak_avx512.cc)
  set_property(SOURCE float_peak_avx2.cc APPEND PROPERTY COMPILE_OPTIONS -mavx2 -mfma)
  set_property(SOURCE float_peak_avx512.cc APPEND PROPERTY COMPILE_OPTIONS -mavx512f)
else()
  list(APPEND attention_bench_sources float_peak_portable.cc)
endif()
qserve_binary(attention_bench SOURCES attention_bench.cc ${attention_bench_sources} DEPS kernels kernels_cpu)
