#include "diffusion/parameters.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const parameters_lora loras[] = {{"me", "0123456789ab"}, {"odd: name, really", "ba9876543210"}, {"unknown", NULL}};

static const parameters_values usual = {.prompt = "a cat, (sitting:1.2) <lora:me:0.8>",
                                        .negative = "blurry",
                                        .steps = 20,
                                        .sampler = "Euler a",
                                        .schedule_type = "Karras",
                                        .cfg = 7.5f,
                                        .seed = 4294967295,
                                        .width = 512,
                                        .height = 768,
                                        .model_hash = "6ce0161689",
                                        .model = "v1-5-pruned-emaonly",
                                        .loras = loras,
                                        .lora_count = 3,
                                        .version = "vulora 0.1.0"};

static void test_format(void **state) {
    (void)state;
    char *text = parameters_format(&usual);
    assert_string_equal(text, "a cat, (sitting:1.2) <lora:me:0.8>\n"
                              "Negative prompt: blurry\n"
                              "Steps: 20, Sampler: Euler a, Schedule type: Karras, CFG scale: 7.5, Seed: 4294967295, Size: 512x768, "
                              "Model hash: 6ce0161689, Model: v1-5-pruned-emaonly, "
                              "Lora hashes: \"me: 0123456789ab, odd name really: ba9876543210\", Version: vulora 0.1.0");
    free(text);
    parameters_values bare = {.prompt = "",
                              .steps = 1,
                              .sampler = "DDIM",
                              .cfg = 7,
                              .width = 64,
                              .height = 64,
                              .clip_skip = 2,
                              .cpu_noise = true,
                              .model = "odd, \"quoted\": name"};
    text = parameters_format(&bare);
    assert_string_equal(
        text, "Steps: 1, Sampler: DDIM, CFG scale: 7, Seed: 0, Size: 64x64, Model: \"odd, \\\"quoted\\\": name\", Clip skip: 2, RNG: CPU");
    free(text);
}

static void check_value(const parameters_text *text, const char *key, const char *value) {
    const char *found = parameters_value(text, key);
    assert_non_null(found);
    assert_string_equal(found, value);
}

static void test_round_trip(void **state) {
    (void)state;
    parameters_values values = usual;
    values.prompt = "line one\nline two: with, odd \"things\"";
    values.negative = "first\nsecond";
    values.model = "a: \"b\",\\ c\td";
    char *text = parameters_format(&values);
    parameters_text read;
    parameters_parse(&read, text);
    assert_string_equal(read.prompt, values.prompt);
    assert_string_equal(read.negative, values.negative);
    check_value(&read, "Steps", "20");
    check_value(&read, "Sampler", "Euler a");
    check_value(&read, "Schedule type", "Karras");
    check_value(&read, "CFG scale", "7.5");
    check_value(&read, "Seed", "4294967295");
    check_value(&read, "Size", "512x768");
    check_value(&read, "Model", values.model);
    check_value(&read, "Lora hashes", "me: 0123456789ab, odd name really: ba9876543210");
    check_value(&read, "Version", "vulora 0.1.0");
    assert_null(parameters_value(&read, "Clip skip"));
    assert_int_equal(read.setting_count, 10);
    parameters_free(&read);
    free(text);
}

/* The example in webui's documentation, and texts of other origin. */
static void test_parse_others(void **state) {
    (void)state;
    parameters_text read;
    parameters_parse(&read, "girl with an artist's beret, ((eyeshadow)), detailed\r\nNegative prompt: ugly, (((deformed))), [blurry]\r\n"
                            "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 965400086, Size: 512x512, Model hash: 45dee52b\n");
    assert_string_equal(read.prompt, "girl with an artist's beret, ((eyeshadow)), detailed");
    assert_string_equal(read.negative, "ugly, (((deformed))), [blurry]");
    check_value(&read, "Model hash", "45dee52b");
    assert_int_equal(read.setting_count, 6);
    parameters_free(&read);

    parameters_parse(&read,
                     "Steps: 20, Model: \"caf\\u00e9 \\ud83d\\ude00 \\ud83d \\/\", A/B-c: \"open, Size: \"x\\\", DD: \"\", EE: \"bad\\q\"");
    check_value(&read, "Model", "caf\xc3\xa9 \xf0\x9f\x98\x80 \xef\xbf\xbd /");
    check_value(&read, "A/B-c", "\"open");
    check_value(&read, "DD", "\"\"");
    check_value(&read, "EE", "\"bad\\q\"");
    parameters_free(&read);

    static const char *const plain[] = {"", "just a prompt: with, one: colon", "\n\n", "Negative prompt:", "a: b, cc: d", "\"", "x: \"\\"};
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++) {
        parameters_parse(&read, plain[i]);
        assert_int_equal(read.setting_count, 0);
        parameters_free(&read);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_format), cmocka_unit_test(test_round_trip),
                                       cmocka_unit_test(test_parse_others)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
