# The floating-point operations (float_ops.h): which files, and which of them take the flags of an instruction set. Included by
# CMakeLists.txt of this folder, which compiles the AVX2 and AVX512 lists with those flags, on x86-64 alone.
set(QSERVE_FLOAT_OPS_SOURCES embed_reference.cc norm_reference.cc rope_reference.cc attention_reference.cc sample.cc
                             sample_reference.cc attention.cc float_run.cc float_kernels_emulated.cc float_ops_emulated.cc)
set(QSERVE_FLOAT_OPS_AVX2_SOURCES float_kernels_avx2.cc)
set(QSERVE_FLOAT_OPS_AVX512_SOURCES float_kernels_avx512.cc)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  list(APPEND QSERVE_FLOAT_OPS_SOURCES float_ops_avx2.cc float_ops_avx512.cc)
endif()
