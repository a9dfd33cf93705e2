/* Decoding: every sort of picture that people have, and every sort of damage. The pictures are made by
   tests/reference/make_image_fixtures.py from one formula. */
#include "base/file.h"
#include "base/memory.h"
#include "datasets/image.h"
#include "formats/safetensors.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define FOLDER TEST_DATA "/images/"
#define WIDTH 24
#define HEIGHT 16

static const uint8_t WHITE[3] = {255, 255, 255};

/* What a fixture shows at (x, y). */
typedef enum look { LOOK_RGB, LOOK_GRAY, LOOK_RGBA, LOOK_GRAY_ALPHA, LOOK_PALETTE, LOOK_PALETTE_CLEAR } look;

static uint8_t over(int value, int alpha, int background) { return (uint8_t)((value * alpha + background * (255 - alpha) + 127) / 255); }

static void expected(look what, int x, int y, const uint8_t back[3], uint8_t out[3]) {
    int color[3] = {10 * x, 15 * y, 5 * (x + y)}, alpha = 255;
    if (what == LOOK_GRAY || what == LOOK_GRAY_ALPHA) color[0] = color[1] = color[2];
    if (what == LOOK_RGBA || what == LOOK_GRAY_ALPHA) alpha = 11 * x % 256;
    if (what == LOOK_PALETTE || what == LOOK_PALETTE_CLEAR) color[1] = 0, color[2] = 255 - 10 * x;
    if (what == LOOK_PALETTE_CLEAR && x < 4) alpha = 0;
    for (int c = 0; c < 3; c++) out[c] = over(color[c], alpha, back[c]);
}

static void check_picture(const char *file, look what, int tolerance, const uint8_t back[3]) {
    char *path = memory_format(FOLDER "%s", file);
    error err = {{0}};
    image_rgb picture;
    if (!image_read(path, back, &picture, &err)) fail_msg("%s", err.text);
    assert_int_equal(picture.width, WIDTH);
    assert_int_equal(picture.height, HEIGHT);
    int worst = 0;
    for (int y = 0; y < HEIGHT; y++)
        for (int x = 0; x < WIDTH; x++) {
            uint8_t want[3];
            expected(what, x, y, back, want);
            for (int c = 0; c < 3; c++) {
                int difference = abs(picture.pixels[(y * WIDTH + x) * 3 + c] - want[c]);
                if (difference > worst) worst = difference;
            }
        }
    if (worst > tolerance) fail_msg("%s: differs by %d", file, worst);
    image_free(&picture);
    free(path);
}

static void every_encoding(void **state) {
    (void)state;
    static const struct {
        const char *file;
        look what;
        int tolerance;
    } cases[] = {
        {"rgb.png", LOOK_RGB, 0},         {"rgb.bmp", LOOK_RGB, 0},       {"gray.png", LOOK_GRAY, 0},
        {"rgba.png", LOOK_RGBA, 0},       {"rgb16.png", LOOK_RGB, 0},     {"gray16.png", LOOK_GRAY, 0},
        {"palette.png", LOOK_PALETTE, 0}, {"rgb.jpg", LOOK_RGB, 5},       {"gray_alpha.png", LOOK_GRAY_ALPHA, 0},
        {"progressive.jpg", LOOK_RGB, 5}, {"gray.jpg", LOOK_GRAY, 4},     {"palette_clear.png", LOOK_PALETTE_CLEAR, 0},
        {"cmyk.jpg", LOOK_RGB, 12},       {"lossless.webp", LOOK_RGB, 0}, {"rgb.webp", LOOK_RGB, 24},
        {"rgba.webp", LOOK_RGBA, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_picture(cases[i].file, cases[i].what, cases[i].tolerance, WHITE);
    static const uint8_t color[3] = {10, 200, 30};
    check_picture("rgba.png", LOOK_RGBA, 0, color);
    check_picture("palette_clear.png", LOOK_PALETTE_CLEAR, 0, color);
}

static void exif_orientations(void **state) {
    (void)state;
    for (int i = 1; i <= 8; i++) {
        char name[40];
        snprintf(name, sizeof name, "orientation_%d.jpg", i);
        check_picture(name, LOOK_RGB, 6, WHITE);
    }
    check_picture("orientation_6.png", LOOK_RGB, 0, WHITE);
    check_picture("orientation_6.webp", LOOK_RGB, 0, WHITE);
    file_map map;
    error err;
    image_info info;
    assert_true(file_map_open(&map, FOLDER "orientation_8.jpg", &err));
    assert_true(image_probe(map.data, map.size, "x", &info, &err));
    assert_int_equal(info.format, IMAGE_JPEG);
    assert_int_equal(info.orientation, 8);
    assert_int_equal(info.width, WIDTH);
    assert_int_equal(info.height, HEIGHT);
    file_map_close(&map);
}

static bool refused(const void *data, size_t size, const char *words) {
    /* A copy of exactly that size, so that the sanitizer sees every byte read too far. */
    uint8_t *copy = memory_new(size, 1);
    if (size) memcpy(copy, data, size);
    image_rgb picture;
    error err = {{0}};
    bool ok = image_decode(copy, size, "photo.png", WHITE, &picture, &err);
    free(copy);
    if (ok)
        image_free(&picture);
    else if (strncmp(err.text, "photo.png: ", 11) != 0)
        fail_msg("%s", err.text);
    else if (words && !strstr(err.text, words))
        fail_msg("%s (should say: %s)", err.text, words);
    return !ok;
}

static void not_pictures(void **state) {
    (void)state;
    assert_true(refused("", 0, "is empty"));
    assert_true(refused("a photo of a cat\n", 17, "is not a picture"));
    assert_true(refused("\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 20, "is not a picture"));
    assert_true(refused("\xFF\xD8\xFF", 3, "cut short"));
    assert_true(refused("\x89PNG\r\n\x1a\n", 8, "cut short"));
    assert_true(refused("RIFF\xFF\xFF\0\0WEBPVP8 ", 16, "cut short"));
    assert_true(refused("BM\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 18, "cut short"));
    static const char *const foreign[][2] = {{"other.gif", "is a GIF"}, {"other.tif", "is a TIFF"}, {"animated.webp", "animation"}};
    for (size_t i = 0; i < 3; i++) {
        char *path = memory_format(FOLDER "%s", foreign[i][0]);
        file_map map;
        error err;
        assert_true(file_map_open(&map, path, &err));
        assert_true(refused(map.data, map.size, foreign[i][1]));
        file_map_close(&map);
        free(path);
    }
    image_rgb picture;
    error err;
    assert_false(image_read(FOLDER "no_such.png", WHITE, &picture, &err));
    assert_non_null(strstr(err.text, "no_such.png"));
    assert_false(image_read(FOLDER, WHITE, &picture, &err));
}

/* Cut at every length, no file may be taken for whole; flipped bits never read out of bounds, and PNG notices all of them. */
static void damaged_pictures(void **state) {
    (void)state;
    static const char *const files[] = {"rgb.png",         "palette_clear.png",  "rgb.jpg",
                                        "progressive.jpg", "orientation_6.jpg",  "lossless.webp",
                                        "rgb.webp",        "orientation_6.webp", "rgb.bmp"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char *path = memory_format(FOLDER "%s", files[i]);
        error err;
        size_t size;
        uint8_t *data = (uint8_t *)file_read_text(path, 1 << 20, &size, &err);
        assert_non_null(data);
        for (size_t cut = 0; cut < size; cut++)
            if (!refused(data, cut, NULL)) fail_msg("%s: the first %zu of %zu bytes are taken for a picture", files[i], cut, size);
        for (size_t at = 0; at < size; at++) {
            uint8_t kept = data[at];
            data[at] = (uint8_t)(kept ^ (1u << at % 8));
            bool noticed = refused(data, size, NULL);
            if (strstr(files[i], ".png") && !noticed) fail_msg("%s: damage at byte %zu goes unnoticed", files[i], at);
            data[at] = kept;
        }
        free(data);
        free(path);
    }
}

static void sizes_over_the_limits(void **state) {
    (void)state;
    static const struct {
        uint32_t width, height;
        const char *words;
    } cases[] = {{20000, 1, "20000x1"},
                 {1, 20000, "1x20000"},
                 {16000, 16000, "million"},
                 {0, 5, "no pixels"},
                 {0x7FFFFFFF, 0x7FFFFFFF, "scale it down"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint8_t bmp[70] = {'B', 'M'};
        bmp[10] = 54;
        bmp[14] = 40;
        bmp[26] = 1;
        bmp[28] = 24;
        bmp[30] = 1; /* a compressed kind, whose rows cannot be counted beforehand */
        for (int b = 0; b < 4; b++) {
            bmp[18 + b] = (uint8_t)(cases[i].width >> 8 * b);
            bmp[22 + b] = (uint8_t)(cases[i].height >> 8 * b);
        }
        assert_true(refused(bmp, sizeof bmp, i == 3 ? "damaged" : cases[i].words));
    }
    /* One pixel is a picture; whether it is worth training on is the dataset's question. */
    static const uint8_t pixel[] = {'B', 'M', 58, 0, 0, 0, 0, 0, 0, 0, 54, 0, 0, 0, 40, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0,  1,  0,  24,
                                    0,   0,   0,  0, 0, 4, 0, 0, 0, 0, 0,  0, 0, 0, 0,  0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 30, 20, 10, 0};
    image_rgb picture;
    error err;
    assert_true(image_decode(pixel, sizeof pixel, "x", WHITE, &picture, &err));
    assert_int_equal(picture.pixels[0], 10);
    image_free(&picture);
}

static void scaling_as_pillow_and_areas(void **state) {
    (void)state;
    safetensors st;
    error err = {{0}};
    if (!safetensors_open(&st, FOLDER "scaled.safetensors", &err)) fail_msg("%s", err.text);
    const safetensors_tensor *source = safetensors_find(&st, "source");
    image_rgb picture = {(int)source->dims[1], (int)source->dims[0], (uint8_t *)(uintptr_t)source->data};
    static const char *const names[] = {"lanczos_up", "lanczos_mixed", "area", "area_odd", "same"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char area_name[40];
        snprintf(area_name, sizeof area_name, "%s.area", names[i]);
        const safetensors_tensor *want = safetensors_find(&st, names[i]);
        int32_t box[4];
        memcpy(box, safetensors_find(&st, area_name)->data, sizeof box);
        image_area area = {box[0], box[1], box[2], box[3]};
        int width = (int)want->dims[1], height = (int)want->dims[0];
        float *expect = safetensors_read_f32(&st, want, &err), *got = memory_new(want->elements, sizeof *got);
        for (int flip = 0; flip < 2; flip++) {
            assert_true(image_scale(&picture, area, flip, got, width, height, &err));
            double worst = 0;
            for (int y = 0; y < height; y++)
                for (int x = 0; x < width; x++)
                    for (int c = 0; c < 3; c++) {
                        int seen = flip ? width - 1 - x : x;
                        worst = fmax(worst, fabs((double)got[(y * width + seen) * 3 + c] - (double)expect[(y * width + x) * 3 + c]));
                    }
            if (worst > 2e-5) fail_msg("%s: differs by %g", names[i], worst);
        }
        free(expect);
        free(got);
    }
    safetensors_close(&st);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_encoding),   cmocka_unit_test(exif_orientations),     cmocka_unit_test(not_pictures),
        cmocka_unit_test(damaged_pictures), cmocka_unit_test(sizes_over_the_limits), cmocka_unit_test(scaling_as_pillow_and_areas),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
