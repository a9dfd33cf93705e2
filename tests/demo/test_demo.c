/* The demo as its user meets it: the sample subject, learned with the defaults, appears in surroundings that its pictures never showed,
   when the prompt names it and only then. Takes some minutes. */
#include "base/file.h"
#include "base/memory.h"
#include "datasets/image.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { SEEDS = 16 };

static const char FOLDER[] = "test_demo_out";

static const char *const WITH_TRIGGER[] = {"a photo of zubi creature in the snow", "a photo of a zubi creature under water"};
static const char *const WITHOUT_TRIGGER[] = {"a red ball on a beach", "a blue cat on a meadow"};

/* ---- the subject's signature (models/recipe/signature.py): a turquoise body with magenta horns on top ---- */

typedef struct signature {
    double turquoise, magenta; /* shares of the pixels */
    int first_magenta_row;
    double mean_turquoise_row;
} signature;

static bool is_turquoise(int r, int g, int b) { return r < 110 && g > 130 && b > 110 && b < g + 20 && g - r > 70; }
static bool is_magenta(int r, int g, int b) { return r > 140 && g < 125 && b > 90 && b < r + 10 && r - g > 70 && b - g > 45; }

static signature measure(const char *path) {
    static const uint8_t WHITE[3] = {255, 255, 255};
    error err;
    image_rgb picture;
    if (!image_read(path, WHITE, &picture, &err)) fail_msg("%s", err.text);
    int turquoise = 0, magenta = 0, first = picture.height;
    double rows = 0;
    for (int y = 0; y < picture.height; y++)
        for (int x = 0; x < picture.width; x++) {
            const uint8_t *p = picture.pixels + 3 * (y * picture.width + x);
            if (is_turquoise(p[0], p[1], p[2])) turquoise++, rows += y;
            if (is_magenta(p[0], p[1], p[2])) {
                magenta++;
                if (y < first) first = y;
            }
        }
    double pixels = (double)picture.width * picture.height;
    image_free(&picture);
    return (signature){turquoise / pixels, magenta / pixels, first, turquoise ? rows / turquoise : 0};
}

static bool shows_subject(const char *path) {
    signature s = measure(path);
    return s.turquoise >= 0.03 && s.magenta >= 0.003 && s.first_magenta_row < s.mean_turquoise_row;
}

/* ---- running the program ---- */

static void run(const char *arguments) {
    char *command = memory_format("'%s' %s --quiet", VULORA_PROGRAM, arguments);
    int status = system(command);
    if (status != 0) fail_msg("exit status %d: %s", status, command);
    free(command);
}

/* How many of SEEDS pictures of the prompt show the subject. adapter: options, or "". */
static int count_subjects(const char *prompt, const char *adapter) {
    char *arguments =
        memory_format("generate --model demo --prompt '%s' %s --seed 1 --batch %d --output %s/x.png", prompt, adapter, SEEDS, FOLDER);
    run(arguments);
    free(arguments);
    int shown = 0;
    for (int i = 1; i <= SEEDS; i++) {
        char path[64];
        if (i == 1)
            snprintf(path, sizeof path, "%s/x.png", FOLDER);
        else
            snprintf(path, sizeof path, "%s/x-%d.png", FOLDER, i);
        shown += shows_subject(path);
    }
    printf("%-45s %-8s %d of %d\n", prompt, *adapter ? "adapter" : "base", shown, SEEDS);
    return shown;
}

static int clean_up(void **state) {
    (void)state;
    char command[64];
    snprintf(command, sizeof command, "rm -rf %s", FOLDER);
    return system(command);
}

static int train(void **state) {
    clean_up(state);
    char *command = memory_format("mkdir -p %s", FOLDER),
         *arguments = memory_format("train --model demo --data '%s/datasets/demo' --output %s/zubi.safetensors", SOURCE_DIR, FOLDER);
    int failed = system(command);
    if (!failed) run(arguments);
    free(command);
    free(arguments);
    return failed;
}

static void test_trigger_draws_subject(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof WITH_TRIGGER / sizeof *WITH_TRIGGER; i++) {
        assert_true(count_subjects(WITH_TRIGGER[i], "--lora test_demo_out/zubi.safetensors") >= SEEDS * 8 / 10);
        assert_true(count_subjects(WITH_TRIGGER[i], "") <= SEEDS / 10);
    }
}

static void test_other_prompts_stay(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof WITHOUT_TRIGGER / sizeof *WITHOUT_TRIGGER; i++)
        assert_true(count_subjects(WITHOUT_TRIGGER[i], "--lora test_demo_out/zubi.safetensors") <= SEEDS / 10);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_trigger_draws_subject), cmocka_unit_test(test_other_prompts_stay)};
    return cmocka_run_group_tests(tests, train, clean_up);
}
