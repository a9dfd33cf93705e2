/* Sizes of memory as people read them. */
#ifndef VULORA_BASE_BYTES_H
#define VULORA_BASE_BYTES_H

#include <stdint.h>

/* "1.60 GiB", "516 MiB": three digits. Returns out. */
const char *bytes_text(uint64_t bytes, char out[24]);

#endif
