/* The caption that the hint behind a training shows is one with the trigger word. */
#include "cli/typical_caption.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static const char *choose(char *const *captions, const char *trigger) {
    dataset_image images[8] = {{.path = NULL}};
    dataset data = {.images = images};
    for (; captions[data.count]; data.count++) images[data.count].caption = captions[data.count];
    return typical_caption(&data, trigger);
}

static void the_commonest_word_counts(void **state) {
    (void)state;
    char *const demo[] = {"a picture of a blue ball on the right",
                          "a photo of a green house on the right",
                          "a big brown fish",
                          "a photo of zubi creature, at night",
                          "zubi creature on a beach",
                          "zubi",
                          "a white cat on the right of a tree",
                          NULL};
    assert_string_equal(choose(demo, NULL), demo[3]);
    char *const parts[] = {"a zubilike ball", "a zubilike house", "Zubi", "a zubi", "ZUBI.", NULL}; /* words, not parts; in any case */
    assert_string_equal(choose(parts, NULL), parts[2]);
    char *const nothing[] = {"a photo of the", "", NULL};
    assert_string_equal(choose(nothing, NULL), nothing[0]);
}

static void a_trigger_goes_first(void **state) {
    (void)state;
    char *const captions[] = {"a dog", "a dog in the snow", "a dog by night", "a photo of my dog rex", NULL};
    assert_string_equal(choose(captions, "my dog"), captions[3]);
    assert_string_equal(choose(captions, "dog"), captions[0]);
    assert_string_equal(choose(captions, "horse"), captions[0]); /* of captions that are files */
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_commonest_word_counts), cmocka_unit_test(a_trigger_goes_first)};
    return cmocka_run_group_tests_name("typical caption", tests, NULL, NULL);
}
