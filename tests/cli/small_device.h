/* The built program on the software device behind the test layer (tests/vulkan_layer), with a model in miniature in the working folder. */
#ifndef VULORA_TESTS_CLI_SMALL_DEVICE_H
#define VULORA_TESTS_CLI_SMALL_DEVICE_H

#include "base/file.h"
#include "base/memory.h"
#include "tests/support/folder.h"
#include "tests/support/program.h"
#include "tests/support/tiny_model.h"
#include "tests/support/tiny_png.h"
#include "tests/support/validation.h"
#include "tests/support/vulkan_layer.h"
#include "vulkan/gpu.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The software device is named: no other is ever taken. */
#define ON_DEVICE "--device llvmpipe "
#define TRAIN_ON_DEVICE \
    "train --model model.safetensors --data photos --trigger wall --resolution 64 --rank 2 --seed 1 --save-precision fp32 " ON_DEVICE

static inline bool has_software_device(void) {
    gpu_info list[16];
    int count = gpu_list(list, 16);
    for (int i = 0; i < count && i < 16; i++)
        if (strstr(list[i].name, "llvmpipe")) return true;
    return false;
}

static inline int small_device_open(void **state, const char *name) {
    *state = has_software_device() ? folder_enter(name) : NULL;
    if (!*state) return 0;
    bool ok = tiny_model_write("model.safetensors", 1) && tiny_lora_write("lora.safetensors", 2, TINY_UNET_CHANNELS);
    folder_text(*state, "photos/none.txt", "");
    for (unsigned i = 0; i < 2; i++) {
        char path[32];
        snprintf(path, sizeof path, "photos/%u.png", i);
        ok = ok && tiny_png_write(path, 64, 64, i);
    }
    return ok ? 0 : -1;
}

static inline int small_device_close(void **state) {
    vulkan_layer_use(NULL, NULL);
    return *state ? folder_leave(*state) : 0;
}

#define NEEDS_SMALL_DEVICE \
    if (!*state) skip()

/* Runs with those settings of the layer; its log is the file "seen". */
static inline program_result run_with(const char *settings, const char *arguments) {
    const char *output = strstr(arguments, "--output "), *slash = output ? strchr(output, '/') : NULL;
    if (slash) { /* its folder */
        char folder[64];
        snprintf(folder, sizeof folder, "%.*s", (int)(slash - output - 9), output + 9);
        mkdir(folder, 0777);
    }
    vulkan_layer_use(settings, "seen");
    program_result r = program_run(VULORA_PROGRAM, arguments, NULL);
    vulkan_layer_use(NULL, NULL);
    return r;
}

static inline void expect_run(const char *settings, const char *arguments) {
    program_result r = run_with(settings, arguments);
    if (r.status != 0) fail_msg("[%s] vulora %s: status %d: %s", settings, arguments, r.status, r.err);
    program_result_free(&r);
}

/* What the program must say on its way out. */
static inline void expect_failure(const char *settings, const char *arguments, const char *const *says) {
    program_result r = run_with(settings, arguments);
    if (r.status != 1) fail_msg("[%s] vulora %s: status %d: %s", settings, arguments, r.status, r.err);
    for (; *says; says++)
        if (!strstr(r.err, *says)) fail_msg("[%s] vulora %s: \"%s\" is not in: %s", settings, arguments, *says, r.err);
    program_result_free(&r);
}

static inline void expect_same_files(const char *a, const char *b) {
    file_map x, y;
    error err;
    if (!file_map_open(&x, a, &err) || !file_map_open(&y, b, &err)) fail_msg("%s", err.text);
    if (x.size != y.size || memcmp(x.data, y.data, x.size)) fail_msg("%s and %s are not the same", a, b);
    file_map_close(&x);
    file_map_close(&y);
}

#endif
