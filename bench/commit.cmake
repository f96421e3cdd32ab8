# Writes OUTPUT from commit.h.in with the commit of SOURCE; a file that would not change is left alone, so that nothing is rebuilt.
# Run at each build: cmake -DSOURCE=... -DOUTPUT=... -P commit.cmake
find_program(git git)
if(git)
  execute_process(COMMAND ${git} -C ${SOURCE} describe --always --dirty --abbrev=12 --exclude=*
                  OUTPUT_VARIABLE QSERVE_COMMIT OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
configure_file(${SOURCE}/bench/commit.h.in ${OUTPUT} @ONLY)
