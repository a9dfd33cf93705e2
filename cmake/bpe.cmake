# CLIP's byte-pair merges, embedded in the text encoder. The file is the published one (OpenAI's, as open_clip_torch carries it),
# so its hash is checked; tools/fetch_bpe.sh fetches it, -DVULORA_BPE=FILE names a copy for builds without network.
# Run by the build itself (cmake -P) this file writes the C array.
set(BPE_SHA256 924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a)
set(BPE_BYTES 262144) # of the gzip stream: more than the 48894 merges that CLIP uses of the 262144 in it

if(CMAKE_SCRIPT_MODE_FILE)
  file(READ ${BPE_INPUT} hex LIMIT ${BPE_BYTES} HEX)
  string(REGEX REPLACE "(................................)" "\\1\n" hex "${hex}")
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," hex "${hex}")
  file(WRITE ${BPE_OUTPUT} "/* The head of CLIP's bpe_simple_vocab_16e6.txt.gz, written by cmake/bpe.cmake. */\n"
       "#include \"text_encoder/bpe_builtin.h\"\n\n"
       "const unsigned char bpe_builtin[] = {\n${hex}};\nconst size_t bpe_builtin_size = sizeof bpe_builtin;\n")
  return()
endif()

set(VULORA_BPE ${CMAKE_SOURCE_DIR}/third_party/bpe/bpe_simple_vocab_16e6.txt.gz CACHE FILEPATH "CLIP's BPE merges, bpe_simple_vocab_16e6.txt.gz")
if(NOT EXISTS ${VULORA_BPE})
  message(FATAL_ERROR "CLIP's BPE merges are missing: ${VULORA_BPE}\n"
          "Run tools/fetch_bpe.sh once, or give a copy of bpe_simple_vocab_16e6.txt.gz: -DVULORA_BPE=FILE")
endif()
file(SHA256 ${VULORA_BPE} found)
if(NOT found STREQUAL BPE_SHA256)
  message(FATAL_ERROR "${VULORA_BPE} is not CLIP's bpe_simple_vocab_16e6.txt.gz: its SHA-256 is ${found}, ${BPE_SHA256} was expected.\n"
          "Remove it and run tools/fetch_bpe.sh, or name the right file with -DVULORA_BPE=FILE")
endif()

set(BPE_C ${CMAKE_BINARY_DIR}/generated/bpe_builtin.c)
add_custom_command(
  OUTPUT ${BPE_C}
  COMMAND ${CMAKE_COMMAND} -DBPE_INPUT=${VULORA_BPE} -DBPE_OUTPUT=${BPE_C} -P ${CMAKE_CURRENT_LIST_FILE}
  DEPENDS ${VULORA_BPE} ${CMAKE_CURRENT_LIST_FILE}
  COMMENT "Embedding CLIP's BPE merges"
  VERBATIM)
