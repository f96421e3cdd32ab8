# kernels_bench: speed of the kernels as fractions of what the machine can do. Included by CMakeLists.txt of this folder.
set(sources kernels_bench.cc machine_peaks.cc)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  list(APPEND sources machine_peaks_x86.cc machine_peaks_avx2.cc machine_peaks_avxvnni.cc machine_peaks_avx512vnni.cc
       machine_peaks_avx512amx.cc)  # the last is assembly: it needs no flags
  set_property(SOURCE machine_peaks_avx2.cc APPEND PROPERTY COMPILE_OPTIONS -mavx2)
  set_property(SOURCE machine_peaks_avxvnni.cc APPEND PROPERTY COMPILE_OPTIONS -mavx2 -mavxvnni)
  set_property(SOURCE machine_peaks_avx512vnni.cc APPEND PROPERTY COMPILE_OPTIONS -mavx512f -mavx512bw -mavx512vnni
               -Wno-uninitialized -Wno-maybe-uninitialized)
else()
  list(APPEND sources machine_peaks_portable.cc)
endif()
qserve_binary(kernels_bench SOURCES ${sources} DEPS kernels)
