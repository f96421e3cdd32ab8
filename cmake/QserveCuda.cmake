# The CUDA language, where QSERVE_CUDA asks for it, and how kernels are compiled. Included after project(), by the whole project
# and by kernels/ alone; the compiler is the one named by CUDACXX, else nvcc on the PATH.
option(QSERVE_CUDA "Build the CUDA backend" OFF)

if(QSERVE_CUDA)
  # Machine code for what is known to be there, and PTX that newer GPUs compile for themselves.
  set(CMAKE_CUDA_ARCHITECTURES "80-real;89-real;90a-real;80-virtual" CACHE STRING "GPU architectures")
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  if(CMAKE_CXX_COMPILER_LAUNCHER)
    set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_CXX_COMPILER_LAUNCHER} CACHE STRING "compiler launcher")
  endif()
  enable_language(CUDA)
  find_package(CUDAToolkit REQUIRED)
endif()

# No multiply and add is contracted that the source does not write as one; spills and local memory are told.
function(qserve_cuda_options target)
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-fmad=false -Xptxas=-warn-spills,-warn-lmem-usage>)
endfunction()
