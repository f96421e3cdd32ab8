# QSERVE_SANITIZE: empty, "address" (with undefined) or "thread". Presets `debug` and `tsan` set it.
set(QSERVE_SANITIZE "" CACHE STRING "sanitizer: address | thread | empty")
set_property(CACHE QSERVE_SANITIZE PROPERTY STRINGS "" address thread)
if(QSERVE_SANITIZE STREQUAL "address")
  add_compile_options(-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=address,undefined)
elseif(QSERVE_SANITIZE STREQUAL "thread")
  add_compile_options(-fsanitize=thread -fno-omit-frame-pointer)
  # Protobuf's headers give its maps more members when they see this sanitizer, which the system's library does not know of. The
  # standard library, which is all headers where it matters, is told by its own name.
  add_compile_options(-U__SANITIZE_THREAD__ -D_GLIBCXX_TSAN=1)
  add_link_options(-fsanitize=thread)
elseif(NOT QSERVE_SANITIZE STREQUAL "")
  message(FATAL_ERROR "QSERVE_SANITIZE must be address, thread or empty, not '${QSERVE_SANITIZE}'")
endif()
