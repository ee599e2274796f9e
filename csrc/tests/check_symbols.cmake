# cmake -DNM=... -DOBJECTS=a.o,b.o -DLIBRARY=libktops.so -P check_symbols.cmake
#
# Each kernel unit may export its KernelTable and nothing else: any other external symbol is an
# inline function that the linker could choose for the whole library, with instructions the machine
# may not have. The library exports the C interface and nothing else.
function(read_symbols file variable)
  execute_process(COMMAND ${NM} --defined-only --extern-only ${ARGN} ${file}
                  OUTPUT_VARIABLE output RESULT_VARIABLE status)
  if(status)
    message(FATAL_ERROR "nm failed on ${file}")
  endif()
  string(REGEX MATCHALL "[^\n]+" lines "${output}")
  set(${variable} ${lines} PARENT_SCOPE)
endfunction()

string(REPLACE "," ";" objects "${OBJECTS}")
foreach(object IN LISTS objects)
  read_symbols(${object} symbols)
  list(LENGTH symbols count)
  if(NOT count EQUAL 1 OR NOT symbols MATCHES "Kernels")
    message(FATAL_ERROR "${object} exports: ${symbols}")
  endif()
endforeach()

read_symbols(${LIBRARY} symbols --dynamic)
foreach(symbol IN LISTS symbols)
  if(NOT symbol MATCHES " T ktops_")
    message(FATAL_ERROR "${LIBRARY} exports ${symbol}")
  endif()
endforeach()
