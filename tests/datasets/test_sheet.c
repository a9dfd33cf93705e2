/* Sheets of labelled pictures. */
#include "datasets/sheet.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include <string.h>

static uint8_t RED[64 * 32 * 3];

static image_rgb red(void) {
    for (size_t i = 0; i < sizeof RED; i += 3) RED[i] = 255;
    return (image_rgb){64, 32, RED};
}

static const uint8_t *pixel(const sheet *s, int x, int y) { return s->pixels + 3 * ((size_t)y * (size_t)s->width + (size_t)x); }

static int count_dark(const sheet *s, int y0, int y1) {
    int dark = 0;
    for (int y = y0; y < y1; y++)
        for (int x = 0; x < s->width; x++) dark += pixel(s, x, y)[0] < 100 && pixel(s, x, y)[1] < 100;
    return dark;
}

static void pictures_stand_where_they_are_put(void **state) {
    (void)state;
    const char *const captions[] = {"one", "two"}, *const labels[] = {"first", "second"};
    sheet s;
    sheet_layout layout = {2, 2, captions, labels, 64, 32};
    image_rgb picture = red();
    assert_true(sheet_create(&s, &layout, NULL));
    assert_int_equal(s.cell_width, 256);
    assert_int_equal(s.cell_height, 128);
    assert_true(sheet_put(&s, 1, 1, &picture, NULL));
    int x = 8 + 256 + 8, y = s.row_tops[1];
    const uint8_t *corner = pixel(&s, x, y), *end = pixel(&s, x + 255, y + 127), *outside = pixel(&s, x - 1, y), *empty = pixel(&s, 8, y);
    assert_true(corner[0] == 255 && corner[1] == 0 && end[0] == 255 && end[1] == 0);
    assert_true(outside[1] == 255 && empty[1] == 255);
    assert_true(s.row_tops[1] > s.row_tops[0] + 128 && s.height >= s.row_tops[1] + 128);
    assert_true(count_dark(&s, 0, s.row_tops[0]) > 50); /* the texts */
    sheet_free(&s);
}

static void long_texts_are_broken(void **state) {
    (void)state;
    char word[200];
    memset(word, 'w', sizeof word - 1);
    word[sizeof word - 1] = 0;
    const char *const short_text[] = {"one"}, *const words[] = {"a caption of many words that is far too long for one line of a picture"};
    const char *const one_word[] = {word},
                      *const foreign[] = {"gr\xc3\xbc\xc3\x9f"
                                          "e\n"},
                      *const nothing[] = {""};
    const char *const *const captions[] = {nothing, short_text, foreign, words, one_word};
    int before = 0;
    for (size_t k = 0; k < sizeof captions / sizeof *captions; k++) {
        sheet s;
        sheet_layout layout = {1, 1, captions[k], short_text, 256, 8};
        assert_true(sheet_create(&s, &layout, NULL));
        assert_true(k == 2 ? s.height == before : s.height > before);
        before = s.height;
        sheet_free(&s);
    }
}

static void a_sheet_too_large_is_refused(void **state) {
    (void)state;
    static const char *captions[100];
    for (size_t k = 0; k < 100; k++) captions[k] = "x";
    sheet s;
    error err = {""};
    sheet_layout layout = {100, 1, captions, captions, 512, 512};
    assert_false(sheet_create(&s, &layout, &err));
    assert_non_null(strstr(err.text, "too much for one sheet"));
    layout = (sheet_layout){1, 100, captions, captions, 512, 512};
    assert_false(sheet_create(&s, &layout, &err));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pictures_stand_where_they_are_put),
        cmocka_unit_test(long_texts_are_broken),
        cmocka_unit_test(a_sheet_too_large_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
