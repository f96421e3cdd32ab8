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
# The model under the engine and its scheduler.
qserve_test(engine_model_test
  SOURCES engine_model_test.cc
  DEPS worker_engine worker_exec LABELS integration)
