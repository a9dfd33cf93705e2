/* PNG files with text: written, read back by stb_image (the pixels) and by ourselves (the texts), and broken ones. */
#include "formats/png_text.h"

#include "base/file.h"
#include "base/memory.h"
#include "tests/support/folder.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include <cmocka.h>

#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_ONLY_PNG
#if defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wunused-function"
#endif
#include <stb/stb_image.h>

static char *folder;

static int setup(void **state) {
    (void)state;
    folder = folder_make("formats");
    return 0;
}

static int teardown(void **state) {
    (void)state;
    folder_remove(folder);
    return 0;
}

static const png_text TEXTS[] = {
    {"parameters", "a photo of sks dog, <lora:me:0.8>\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a"},
    {"Comment", "caf\xc3\xa9 \xc2\xa9"},
    {"parameters2", "\xe7\x8a\xac (dog) \xf0\x9f\x90\xb6"},
    {"empty", ""},
};
enum { TEXT_COUNT = sizeof TEXTS / sizeof *TEXTS };

static uint8_t *picture(int w, int h, int channels) {
    uint8_t *pixels = memory_new((size_t)(w * h * channels), 1);
    for (int i = 0; i < w * h * channels; i++) pixels[i] = (uint8_t)(i * 7 + i / 13);
    return pixels;
}

static void round_trip(void **state) {
    (void)state;
    static const int sizes[][3] = {{1, 1, 3}, {17, 5, 3}, {64, 48, 4}, {33, 33, 1}, {512, 384, 3}};
    char *path = memory_format("%s/a.png", folder);
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        int w = sizes[k][0], h = sizes[k][1], c = sizes[k][2], x = 0, y = 0, n = 0;
        uint8_t *pixels = picture(w, h, c);
        error err = {{0}};
        if (!png_write(path, pixels, w, h, c, TEXTS, TEXT_COUNT, &err)) fail_msg("%s", err.text);
        uint8_t *back = stbi_load(path, &x, &y, &n, 0);
        assert_non_null(back);
        assert_true(x == w && y == h && n == c);
        assert_memory_equal(back, pixels, (size_t)(w * h * c));
        stbi_image_free(back);
        png_texts texts;
        if (!png_texts_read(&texts, path, &err)) fail_msg("%s", err.text);
        assert_int_equal(texts.count, TEXT_COUNT);
        for (size_t i = 0; i < TEXT_COUNT; i++) {
            assert_string_equal(texts.items[i].key, TEXTS[i].key);
            assert_string_equal(png_texts_find(&texts, TEXTS[i].key), TEXTS[i].value);
        }
        assert_null(png_texts_find(&texts, "absent"));
        png_texts_free(&texts);
        free(pixels);
    }
    free(path);
}

/* tEXt for Latin-1, iTXt for the rest, both right behind IHDR. */
static void chunk_types(void **state) {
    (void)state;
    uint8_t pixel[3] = {1, 2, 3};
    size_t size = 0;
    error err = {{0}};
    uint8_t *png = png_encode(pixel, 1, 1, 3, TEXTS + 1, 2, &size, &err);
    assert_non_null(png);
    assert_memory_equal(png + 33 + 4, "tEXtComment\0caf\xe9 \xa9", 18);
    size_t second = 33 + 12 + 14;
    assert_memory_equal(png + second + 4, "iTXtparameters2\0\0\0\0\0\xe7\x8a\xac", 23);
    free(png);
}

static void compressed_texts(void **state) {
    (void)state;
    /* IHDR is not looked at: signature, a zTXt and a compressed iTXt, IEND */
    uint8_t data[1024] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'}, packed[256];
    size_t at = 8;
    for (int k = 0; k < 3; k++) {
        static const char *const types[] = {"zTXt", "iTXt", "IEND"};
        static const char *const values[] = {"gr\xfc\xdf", "gr\xc3\xbc\xc3\x9f", ""};
        static const char *const heads[] = {"k\0", "k\0\1\0en\0kk", ""};
        static const size_t head_sizes[] = {3, 10, 0};
        uLongf n = sizeof packed;
        assert_int_equal(compress2(packed, &n, (const Bytef *)values[k], (uLong)strlen(values[k]), 9), Z_OK);
        if (k == 2) n = 0;
        uint32_t length = (uint32_t)(head_sizes[k] + n);
        data[at + 3] = (uint8_t)length;
        memcpy(data + at + 4, types[k], 4);
        memcpy(data + at + 8, heads[k], head_sizes[k]);
        memcpy(data + at + 8 + head_sizes[k], packed, n);
        uint32_t crc = (uint32_t)crc32(0, data + at + 4, 4 + length);
        for (int i = 0; i < 4; i++) data[at + 8 + length + (size_t)i] = (uint8_t)(crc >> (24 - 8 * i));
        at += 12 + length;
    }
    png_texts texts;
    error err = {{0}};
    if (!png_texts_parse(&texts, data, at, "memory", &err)) fail_msg("%s", err.text);
    assert_int_equal(texts.count, 2);
    assert_string_equal(texts.items[0].value, "gr\xc3\xbc\xc3\x9f");
    assert_string_equal(texts.items[1].value, "gr\xc3\xbc\xc3\x9f");
    png_texts_free(&texts);
}

/* Cut anywhere, or with any bit turned: an error or the same texts, never more. */
static void broken_files(void **state) {
    (void)state;
    uint8_t *pixels = picture(4, 4, 3);
    size_t size = 0;
    error err = {{0}};
    uint8_t *png = png_encode(pixels, 4, 4, 3, TEXTS, TEXT_COUNT, &size, &err);
    assert_non_null(png);
    png_texts texts;
    for (size_t cut = 0; cut < size; cut++) {
        uint8_t *part = memory_new(cut, 1); /* its own block, so that a sanitizer sees reads behind it */
        memcpy(part, png, cut);
        assert_false(png_texts_parse(&texts, part, cut, "cut.png", &err));
        assert_non_null(strstr(err.text, "cut.png: is"));
        assert_null(texts.items);
        free(part);
    }
    for (size_t i = 0; i < size; i++) {
        png[i] ^= 0x41;
        assert_false(png_texts_parse(&texts, png, size, "bad.png", &err));
        png[i] ^= 0x41;
    }
    free(png);
    free(pixels);
}

static void refuses(void **state) {
    (void)state;
    uint8_t pixel[3] = {0};
    size_t size = 0;
    error err = {{0}};
    char *key = memory_format("%080d", 1);
    const png_text bad[] = {{"", "x"},     {" k", "x"},       {"k\n", "x"},          {key, "x"},
                            {"k", "\xff"}, {"k", "\xc0\x80"}, {"k", "\xed\xa0\x80"}, {"k", "\xe7\x8a"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) assert_null(png_encode(pixel, 1, 1, 3, &bad[i], 1, &size, &err));
    assert_non_null(strstr(err.text, "is not valid UTF-8"));
    static const int sizes[][3] = {{0, 1, 3}, {1, -1, 3}, {1, 1, 2}, {1, 1, 5}, {60000, 60000, 3}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        assert_null(png_encode(pixel, sizes[i][0], sizes[i][1], sizes[i][2], NULL, 0, &size, &err));
    char *path = memory_format("%s/absent/a.png", folder);
    assert_false(png_write(path, pixel, 1, 1, 3, NULL, 0, &err));
    assert_non_null(strstr(err.text, "does not exist"));
    png_texts texts;
    assert_false(png_texts_read(&texts, path, &err));
    free(path);
    free(key);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trip),   cmocka_unit_test(chunk_types), cmocka_unit_test(compressed_texts),
        cmocka_unit_test(broken_files), cmocka_unit_test(refuses),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
