# attention_bench: speed of attention and of the smaller floating-point operations. Included by CMakeLists.txt of this folder, after
# kernels_bench.cmake, whose measuring of the machine it shares.
set(attention_bench_sources ${sources})
list(REMOVE_ITEM attention_bench_sources kernels_bench.cc)
qserve_binary(attention_bench SOURCES attention_bench.cc ${attention_bench_sources} DEPS kernels kernels_cpu)
