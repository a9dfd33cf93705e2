/* `vulora grid`: every cell is the picture that `generate` draws. */
#include "base/memory.h"
#include "datasets/image.h"
#include "tests/support/folder.h"
#include "tests/support/program.h"
#include "tests/support/tiny_model.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#define SETTINGS " --model model.safetensors --width 64 --height 64 --steps 2 --sampler euler --cfg 3 --device cpu "

static char *folder;

static void run(const char *arguments) {
    program_result r = program_run(VULORA_PROGRAM, arguments, NULL);
    if (r.status != 0) fail_msg("vulora %s: status %d: %s", arguments, r.status, r.err);
    program_result_free(&r);
}

static image_rgb read_picture(const char *path) {
    static const uint8_t white[3] = {255, 255, 255};
    image_rgb picture;
    error err;
    if (!image_read(path, white, &picture, &err)) fail_msg("%s", err.text);
    return picture;
}

/* Where in that column of the sheet the picture stands, enlarged by the whole number that sheets use; -1: nowhere. Enlarging is Lanczos, so
   flat areas agree and edges do not: means over what was one pixel are compared, and the best place counts. */
static int top_of(const image_rgb *sheet, int left, const image_rgb *picture) {
    enum { FACTOR = 4, SIDE = 64 * FACTOR };
    double best = 64 * 64 * 3 * 6.0;
    int found = -1;
    for (int top = 0; top + SIDE <= sheet->height; top++) {
        double difference = 0;
        for (int y = 0; y < 64 && difference < best; y++)
            for (int x = 0; x < 64 * 3; x++) {
                int sum = 0;
                for (int k = 0; k < FACTOR * FACTOR; k++) {
                    int row = top + y * FACTOR + k / FACTOR, column = left + x / 3 * FACTOR + k % FACTOR;
                    sum += sheet->pixels[3 * ((size_t)row * (size_t)sheet->width + (size_t)column) + (size_t)(x % 3)];
                }
                difference += abs(sum / (FACTOR * FACTOR) - picture->pixels[y * 64 * 3 + x]);
            }
        if (difference < best) best = difference, found = top;
    }
    return found;
}

static void cells_are_the_pictures_of_generate(void **state) {
    (void)state;
    enum { COLUMN = 256 + 8, ROW = 24 + 256 + 8 };
    run("grid" SETTINGS
        "--prompt 'a wall' --prompt 'a tree' --lora me.safetensors --strengths 0.5,1.5 --seed 7 --batch 2 --output sheet.png");
    run("generate" SETTINGS "--prompt 'a wall' --seed 7 --output bare.png");
    run("generate" SETTINGS "--prompt 'a tree' --seed 8 --lora me.safetensors:0.5 --output weak.png");
    run("generate" SETTINGS "--prompt 'a tree' --seed 8 --lora me.safetensors:1.5 --output strong.png");
    static const char *const paths[] = {"bare.png", "weak.png", "strong.png"};
    image_rgb sheet = read_picture("sheet.png"), pictures[3];
    for (int k = 0; k < 3; k++) pictures[k] = read_picture(paths[k]);
    assert_int_equal(sheet.width, 8 + 4 * COLUMN);
    int first = top_of(&sheet, 8, &pictures[0]);
    assert_true(first > 0);
    assert_int_equal(top_of(&sheet, 8 + 3 * COLUMN, &pictures[1]), first + ROW);
    assert_int_equal(top_of(&sheet, 8 + 3 * COLUMN, &pictures[2]), first + 2 * ROW);
    assert_int_equal(top_of(&sheet, 8, &pictures[2]), -1);
    for (int k = 0; k < 3; k++) image_free(&pictures[k]);
    image_free(&sheet);
}

static void wrong_grids_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *arguments, *word;
        int status;
    } rows[] = {
        {"--lora me.safetensors --output s.png", "--prompt is missing", 2},
        {"--prompt x --output s.png", "--lora is missing", 2},
        {"--prompt x --lora me.safetensors", "--output is missing", 2},
        {"--prompt x --lora me.safetensors --output s.jpg", ".png", 2},
        {"--prompt x --lora me.safetensors --output s.png --strengths 1,x", "--strengths", 2},
        {"--prompt x --lora absent.safetensors --output s.png", "absent.safetensors", 1},
        {"--prompt 'x <lora:me:1>' --lora me.safetensors --output s.png", "<lora:me>", 1},
        {"--prompt x --lora me.safetensors --output s.png --batch 9999", "too much for one sheet", 1},
    };
    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++) {
        char *arguments = memory_format("grid" SETTINGS "%s", rows[k].arguments);
        program_result r = program_run(VULORA_PROGRAM, arguments, NULL);
        if (r.status != rows[k].status || !strstr(r.err, rows[k].word)) fail_msg("vulora %s: status %d: %s", arguments, r.status, r.err);
        program_result_free(&r);
        free(arguments);
    }
}

static int enter(void **state) {
    (void)state;
    folder = folder_enter("vulora_grid");
    return folder && tiny_model_write("model.safetensors", 1) && tiny_lora_write("me.safetensors", 2, TINY_UNET_CHANNELS) ? 0 : -1;
}

static int leave(void **state) {
    (void)state;
    return folder_leave(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cells_are_the_pictures_of_generate),
        cmocka_unit_test(wrong_grids_are_refused),
    };
    return cmocka_run_group_tests(tests, enter, leave);
}
