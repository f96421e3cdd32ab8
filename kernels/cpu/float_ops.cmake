# The floating-point operations (float_ops.h): which files, and which of them take the flags of an instruction set. Included by
# CMakeLists.txt of this folder.
set(QSERVE_FLOAT_OPS_SOURCES embed_reference.cc norm_reference.cc rope_reference.cc attention_reference.cc sample.cc
                             sample_reference.cc)
set(QSERVE_FLOAT_OPS_AVX2_SOURCES)
set(QSERVE_FLOAT_OPS_AVX512_SOURCES)
