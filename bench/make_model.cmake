# bench_make_model: random checkpoints of known shapes. Included by CMakeLists.txt of this folder.
qserve_library(bench_make_model SOURCES byte_tokenizer.cc make_model.cc model_shapes.cc
               DEPS worker_checkpoint quantizer)
