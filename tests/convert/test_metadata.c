/* Edited metadata, thumbnails, and the files that webui keeps beside an adapter. */
#include "convert/metadata.h"

#include "base/file.h"
#include "base/memory.h"
#include "datasets/image.h"
#include "formats/png_text.h"
#include "tests/support/folder.h"
#include "tests/support/tiny_png.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>
#include <jansson.h>

#include <stdlib.h>
#include <string.h>

static char *folder;

static labels trained(void) {
    static const char *const pairs[][2] = {
        {"ss_v2", "False"},        {"ss_base_model_version", "sd_v1"}, {"ss_network_module", "networks.lora"},
        {"ss_network_dim", "8"},   {"ss_tag_frequency", "{}"},         {"ss_output_name", "me"},
        {"modelspec.title", "me"}, {"ss_training_comment", "None"}};
    labels l = {0};
    for (size_t k = 0; k < sizeof pairs / sizeof *pairs; k++) labels_set(&l, pairs[k][0], pairs[k][1]);
    return l;
}

static void everything_is_kept(void **state) {
    (void)state;
    labels l = trained();
    size_t before = l.count;
    const metadata_edits nothing = {.strip = false};
    assert_false(metadata_edits_given(&nothing));
    assert_true(metadata_edit(&l, &nothing, NULL));
    assert_int_equal(l.count, before + 2); /* ModelSpec's edition and architecture */
    assert_string_equal(labels_get(&l, "ss_tag_frequency"), "{}");
    labels_free(&l);
}

static void texts_and_pairs(void **state) {
    (void)state;
    static const char *const set[] = {"ss_output_name=", "a=b=c", "modelspec.author=she"};
    labels l = trained();
    const metadata_edits e = {.title = "Zubi",
                              .trigger = "zubi creature",
                              .notes = "first try",
                              .author = "he",
                              .license = "CC0",
                              .description = "d",
                              .tags = "a, b",
                              .set = set,
                              .set_count = 3};
    assert_true(metadata_edits_given(&e) && metadata_edits_check(&e, NULL) && metadata_edit(&l, &e, NULL));
    static const char *const expected[][2] = {{"modelspec.title", "Zubi"},
                                              {"modelspec.trigger_phrase", "zubi creature"},
                                              {"modelspec.description", "d"},
                                              {"modelspec.license", "CC0"},
                                              {"modelspec.tags", "a, b"},
                                              {"ss_training_comment", "first try"},
                                              {"modelspec.author", "she"},
                                              {"a", "b=c"},
                                              {"modelspec.sai_model_spec", "1.0.1"},
                                              {"modelspec.architecture", "stable-diffusion-v1/lora"},
                                              {"ss_network_dim", "8"}};
    for (size_t k = 0; k < sizeof expected / sizeof *expected; k++) assert_string_equal(labels_get(&l, expected[k][0]), expected[k][1]);
    assert_null(labels_get(&l, "ss_output_name"));
    const metadata_edits out = {.title = "", .license = ""};
    assert_true(metadata_edit(&l, &out, NULL));
    assert_null(labels_get(&l, "modelspec.title"));
    assert_null(labels_get(&l, "modelspec.license"));
    assert_non_null(labels_get(&l, "modelspec.tags"));
    labels_free(&l);
}

static void stripping(void **state) {
    (void)state;
    labels l = trained();
    const metadata_edits e = {.strip = true, .trigger = "zubi"};
    assert_true(metadata_edit(&l, &e, NULL));
    static const char *const left[] = {"ss_v2",
                                       "ss_base_model_version",
                                       "ss_network_module",
                                       "ss_network_dim",
                                       "modelspec.trigger_phrase",
                                       "modelspec.sai_model_spec",
                                       "modelspec.architecture"};
    assert_int_equal(l.count, sizeof left / sizeof *left);
    for (size_t k = 0; k < sizeof left / sizeof *left; k++) assert_non_null(labels_get(&l, left[k]));
    labels_free(&l);
}

static void refused(const metadata_edits *e, const char *word) {
    error err = {""};
    assert_false(metadata_edits_check(e, &err));
    if (!strstr(err.text, word)) fail_msg("'%s' lacks '%s'", err.text, word);
}

static void what_is_refused(void **state) {
    (void)state;
    static const char *const rows[][2] = {
        {"title", "KEY=VALUE"}, {"=x", "KEY=VALUE"}, {"sshs_model_hash=1", "computed"}, {"modelspec.hash_sha256=", "computed"}};
    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++) refused(&(metadata_edits){.set = &rows[k][0], .set_count = 1}, rows[k][1]);
    refused(&(metadata_edits){.negative = "fog"}, "--side-files");
    refused(&(metadata_edits){.preview = "absent.png"}, "absent.png");
    folder_text(folder, "text.png", "no picture");
    refused(&(metadata_edits){.preview = "text.png"}, "text.png");
}

/* ---- pictures ---- */

static uint8_t *decoded(const char *url, const char *type, size_t *size) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    char *head = memory_format("data:image/%s;base64,", type);
    assert_int_equal(strncmp(url, head, strlen(head)), 0);
    const char *text = url + strlen(head);
    free(head);
    size_t n = strlen(text);
    assert_int_equal(n % 4, 0);
    uint8_t *out = memory_new(n, 1);
    *size = n / 4 * 3 - (text[n - 1] == '=') - (text[n - 2] == '=');
    for (size_t i = 0; i < n; i += 4) {
        uint32_t group = 0;
        for (size_t k = 0; k < 4; k++) group = group << 6 | (text[i + k] == '=' ? 0 : (uint32_t)(strchr(digits, text[i + k]) - digits));
        for (size_t k = 0; k < 3; k++) out[i / 4 * 3 + k] = (uint8_t)(group >> (16 - 8 * k));
    }
    return out;
}

static void a_small_picture_is_taken_as_it_is(void **state) {
    (void)state;
    assert_true(tiny_png_write("small.png", 64, 48, 3));
    char *url = metadata_thumbnail("small.png", NULL);
    assert_non_null(url);
    size_t size;
    uint8_t *bytes = decoded(url, "png", &size);
    file_map map;
    assert_true(file_map_open(&map, "small.png", NULL));
    assert_int_equal(size, map.size);
    assert_memory_equal(bytes, map.data, size);
    file_map_close(&map);
    free(bytes);
    free(url);
}

static void a_large_picture_becomes_a_small_webp(void **state) {
    (void)state;
    static const uint8_t white[3] = {255, 255, 255};
    uint8_t *pixels = memory_new((size_t)600 * 900, 3);
    for (size_t i = 0; i < (size_t)600 * 900; i++)
        pixels[3 * i] = 200, pixels[3 * i + 1] = 90, pixels[3 * i + 2] = i / 600 < 450 ? 10 : 240;
    assert_true(png_write("large.png", pixels, 600, 900, 3, NULL, 0, NULL));
    free(pixels);
    char *url = metadata_thumbnail("large.png", NULL);
    assert_non_null(url);
    size_t size;
    uint8_t *bytes = decoded(url, "webp", &size);
    image_rgb picture;
    assert_true(image_decode(bytes, size, "thumbnail", white, &picture, NULL));
    assert_int_equal(picture.width, 171);
    assert_int_equal(picture.height, 256);
    const uint8_t *above = picture.pixels + 3 * (20 * 171 + 80), *below = picture.pixels + 3 * (230 * 171 + 80);
    assert_true(abs(above[0] - 200) < 6 && abs(above[1] - 90) < 6 && abs(above[2] - 10) < 6 && abs(below[2] - 240) < 6);
    image_free(&picture);
    free(bytes);
    free(url);
}

/* ---- side files ---- */

static json_t *side_file(const char *path) {
    json_t *value = json_load_file(path, 0, NULL);
    if (!value) fail_msg("%s: no JSON", path);
    return value;
}

static void expect_text(const json_t *object, const char *key, const char *text) {
    assert_non_null(json_object_get(object, key));
    assert_string_equal(json_string_value(json_object_get(object, key)), text);
}

static void files_beside_an_adapter(void **state) {
    (void)state;
    labels l = trained();
    metadata_edits e = {.trigger = "zubi", .preview = "beside.png", .side_files = true, .preferred_weight = 0.8, .negative = "blurry"};
    assert_true(tiny_png_write("beside.png", 32, 32, 5));
    assert_true(metadata_edit(&l, &e, NULL) && metadata_side_files("me.v2.safetensors", &l, &e, NULL));
    json_t *object = side_file("me.v2.json");
    expect_text(object, "activation text", "zubi");
    expect_text(object, "sd version", "SD1");
    expect_text(object, "negative text", "blurry");
    expect_text(object, "description", "");
    expect_text(object, "notes", "");
    assert_true(json_number_value(json_object_get(object, "preferred weight")) == 0.8);
    json_decref(object);
    file_map a, b;
    assert_true(file_map_open(&a, "beside.png", NULL) && file_map_open(&b, "me.v2.preview.png", NULL));
    assert_int_equal(a.size, b.size);
    assert_memory_equal(a.data, b.data, a.size);
    file_map_close(&a);
    file_map_close(&b);
    labels_free(&l);
}

static void what_the_user_wrote_stays(void **state) {
    (void)state;
    labels l = trained();
    folder_text(folder, "kept.json", "{\"notes\": \"mine\", \"activation text\": \"old\", \"own key\": 3, \"preferred weight\": 0.5}");
    const metadata_edits e = {.trigger = "new", .side_files = true};
    assert_true(metadata_edit(&l, &e, NULL) && metadata_side_files("kept.safetensors", &l, &e, NULL));
    json_t *object = side_file("kept.json");
    expect_text(object, "notes", "mine");
    expect_text(object, "activation text", "new");
    assert_int_equal(json_integer_value(json_object_get(object, "own key")), 3);
    assert_true(json_number_value(json_object_get(object, "preferred weight")) == 0.5);
    json_decref(object);
    assert_false(file_exists("kept.preview.png"));
    labels_free(&l);
}

static int enter(void **state) {
    (void)state;
    folder = folder_enter("vulora_metadata");
    return folder ? 0 : -1;
}

static int leave(void **state) {
    (void)state;
    return folder_leave(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(everything_is_kept),
        cmocka_unit_test(texts_and_pairs),
        cmocka_unit_test(stripping),
        cmocka_unit_test(what_is_refused),
        cmocka_unit_test(a_small_picture_is_taken_as_it_is),
        cmocka_unit_test(a_large_picture_becomes_a_small_webp),
        cmocka_unit_test(files_beside_an_adapter),
        cmocka_unit_test(what_the_user_wrote_stays),
    };
    return cmocka_run_group_tests(tests, enter, leave);
}
