/* Switches the test layer (tests/vulkan_layer) on for the programs that a test starts: a smaller device, or one that fails. */
#ifndef VULORA_TESTS_SUPPORT_VULKAN_LAYER_H
#define VULORA_TESTS_SUPPORT_VULKAN_LAYER_H

#include <stdint.h>

/* settings: as tests/vulkan_layer/settings.h lists them, "range=4194304,no_fp16=1"; NULL: the device as it is, without the layer. What the
   layer saw goes to the file `log`, or nowhere (NULL). */
void vulkan_layer_use(const char *settings, const char *log);

/* A number from such a file; -1: it is not in there. */
int64_t vulkan_layer_seen(const char *log, const char *name);

#endif
