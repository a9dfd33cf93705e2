#include "tests/support/vulkan_layer.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The validation layer comes first, nearer to the program: what the test layer pretends is what it checks by. It leaks under sanitizers. */
#ifdef __SANITIZE_ADDRESS__
#define LAYERS "VK_LAYER_VULORA_test"
#else
#define LAYERS "VK_LAYER_KHRONOS_validation:VK_LAYER_VULORA_test"
#endif

void vulkan_layer_use(const char *settings, const char *log) {
    static const char *const names[] = {"VK_ADD_LAYER_PATH", "VK_INSTANCE_LAYERS", "VULORA_TEST_LAYER", "VULORA_TEST_LAYER_LOG"};
    const char *values[] = {VULKAN_LAYER_FOLDER, LAYERS, settings, log};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (settings && values[i])
            setenv(names[i], values[i], 1);
        else
            unsetenv(names[i]);
}

int64_t vulkan_layer_seen(const char *log, const char *name) {
    FILE *file = fopen(log, "r");
    char key[64];
    int64_t value, found = -1;
    while (file && fscanf(file, "%63s %" SCNd64, key, &value) == 2)
        if (strcmp(key, name) == 0) found = value;
    if (file) fclose(file);
    return found;
}
