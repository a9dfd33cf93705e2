#include "tests/support/validation.h"

#include "vulkan/gpu.h"

#include <stdio.h>
#include <stdlib.h>

void validation_begin(void) {
#ifndef __SANITIZE_ADDRESS__
    setenv("VULORA_VK_VALIDATE", "1", 0);
#endif
}

int validation_end(int failed) {
    const char *first;
    int count = gpu_validation_messages(&first);
    if (count) fprintf(stderr, "%d messages from the validation layer, the first: %s\n", count, first);
    return failed + (count > 0);
}
