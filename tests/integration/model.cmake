# The model from checkpoint to tokens, without engine.
qserve_test(model_golden_test
  SOURCES model_golden_test.cc
  DEPS fakes_random_model worker_exec LABELS integration)
qserve_test(model_schedule_test
  SOURCES model_schedule_test.cc
  DEPS fakes_random_model worker_exec LABELS integration)
qserve_test(model_parallel_test
  SOURCES model_parallel_test.cc
  DEPS fakes_random_model worker_exec LABELS integration)
qserve_test(model_step_test
  SOURCES model_step_test.cc
  DEPS fakes_random_model worker_exec LABELS integration)
qserve_test(model_memory_test
  SOURCES model_memory_test.cc
  DEPS fakes_random_model worker_exec LABELS integration)
target_compile_definitions(model_memory_test PRIVATE QSERVE_SANITIZED=$<BOOL:${QSERVE_SANITIZE}>)
# The model under the engine and its scheduler.
qserve_test(engine_model_test
  SOURCES engine_model_test.cc
  DEPS worker_engine worker_exec LABELS integration)
# The model on the emulated GPU; with CUDA the same kernels are there once more, for real ones.
if(NOT QSERVE_CUDA)
  qserve_test(cuda_text_test SOURCES cuda_text_test.cc
    DEPS fakes_random_model worker_exec worker_text kernels_cuda_emulated LABELS integration)
  qserve_test(cuda_model_test
    SOURCES cuda_model_test.cc
    DEPS fakes_random_model worker_exec kernels_cuda_emulated LABELS integration)
endif()
