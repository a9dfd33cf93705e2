/* Buckets and crops against sd-scripts' documented values. */
#include "datasets/bucket.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void list_for_512(void **state) {
    (void)state;
    static const bucket_size want[] = {
        {256, 832}, {256, 896}, {256, 960}, {256, 1024}, {320, 704}, {320, 768}, {384, 640}, {448, 576},  {512, 512},
        {576, 448}, {640, 384}, {704, 320}, {768, 320},  {832, 256}, {896, 256}, {960, 256}, {1024, 256},
    };
    error err;
    size_t count;
    bucket_size *list = bucket_list(&(bucket_options){.width = 512, .height = 512}, &count, &err);
    assert_non_null(list);
    assert_int_equal(count, 17);
    assert_memory_equal(list, want, sizeof want);
    free(list);
}

static void other_lists(void **state) {
    (void)state;
    static const struct {
        bucket_options options;
        size_t count;
    } cases[] = {
        {{.width = 768, .height = 768}, 19},
        {{.width = 512, .height = 512, .single = true}, 1},
        {{.width = 128, .height = 128, .single = true}, 1},
        {{.width = 640, .height = 384, .single = true}, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        error err;
        size_t count;
        bucket_size *list = bucket_list(&cases[i].options, &count, &err);
        assert_non_null(list);
        assert_int_equal(count, cases[i].count);
        if (cases[i].options.single) {
            assert_int_equal(list[0].width, cases[i].options.width);
            assert_int_equal(list[0].height, cases[i].options.height);
        }
        free(list);
    }
}

/* Whatever the resolution: sides in steps, within the limits, no larger area, no doubles, transposes there. */
static void every_resolution(void **state) {
    (void)state;
    for (int width = 64; width <= 1536; width += 8 + width / 64 * 8)
        for (int height = 64; height <= 1536; height += 8 + height / 64 * 24) {
            error err = {{0}};
            size_t count;
            bucket_size *list = bucket_list(&(bucket_options){.width = width, .height = height}, &count, &err);
            if (!list) fail_msg("%s", err.text);
            for (size_t i = 0; i < count; i++) {
                assert_int_equal(list[i].width % 8, 0);
                assert_int_equal(list[i].height % 8, 0);
                assert_true(list[i].width * list[i].height <= width * height);
                bool mirrored = false;
                for (size_t k = 0; k < count; k++) {
                    mirrored = mirrored || (list[k].width == list[i].height && list[k].height == list[i].width);
                    if (k != i) assert_true(list[k].width != list[i].width || list[k].height != list[i].height);
                }
                assert_true(mirrored);
            }
            free(list);
        }
    error err;
    size_t count;
    bucket_size *list = bucket_list(&(bucket_options){.width = 128, .height = 128}, &count, &err);
    assert_true(count > 7); /* small trainings have buckets, too */
    assert_int_equal(list[count - 1].width, 256);
    assert_int_equal(list[count - 1].height, 64);
    free(list);
}

static void bad_options(void **state) {
    (void)state;
    static const struct {
        bucket_options options;
        const char *words;
    } cases[] = {
        {{.width = 0, .height = 0}, "--resolution 0x0"},
        {{.width = 500, .height = 512}, "--resolution 500x512"},
        {{.width = 56, .height = 512}, "--resolution"},
        {{.width = 512, .height = 8000}, "--resolution"},
        {{.width = 512, .height = 512, .step = 20}, "--bucket-reso-steps 20"},
        {{.width = 512, .height = 512, .step = -8}, "--bucket-reso-steps -8"},
        {{.width = 512, .height = 512, .smallest = 640}, "--min-bucket-reso 640"},
        {{.width = 512, .height = 512, .largest = 256}, "--max-bucket-reso 256"},
        {{.width = 512, .height = 512, .largest = 100000}, "--max-bucket-reso 100000"},
        {{.width = 64, .height = 64, .step = 512}, "no bucket"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        error err = {{0}};
        size_t count;
        assert_null(bucket_list(&cases[i].options, &count, &err));
        if (!strstr(err.text, cases[i].words)) fail_msg("%s", err.text);
    }
}

static void choice_and_crop(void **state) {
    (void)state;
    static const struct {
        int width, height, bucket_width, bucket_height;
        image_area crop;
    } cases[] = {
        {512, 512, 512, 512, {0, 0, 512, 512}},      {1024, 1024, 512, 512, {0, 0, 1024, 1024}},
        {4000, 3000, 576, 448, {71, 0, 3857, 3000}}, {3000, 4000, 448, 576, {0, 71, 3000, 3857}},
        {1920, 1080, 640, 384, {60, 0, 1800, 1080}}, {832, 256, 832, 256, {0, 0, 832, 256}},
        {100, 100, 512, 512, {0, 0, 100, 100}},      {10000, 100, 1024, 256, {4800, 0, 400, 100}},
    };
    error err;
    size_t count;
    bucket_size *list = bucket_list(&(bucket_options){.width = 512, .height = 512}, &count, &err);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bucket_size chosen = list[bucket_choose(list, count, cases[i].width, cases[i].height)];
        assert_int_equal(chosen.width, cases[i].bucket_width);
        assert_int_equal(chosen.height, cases[i].bucket_height);
        image_area crop = bucket_crop(chosen, cases[i].width, cases[i].height);
        if (memcmp(&crop, &cases[i].crop, sizeof crop) != 0)
            fail_msg("%dx%d: crop %d %d %d %d", cases[i].width, cases[i].height, crop.x, crop.y, crop.width, crop.height);
    }
    free(list);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(list_for_512), cmocka_unit_test(other_lists),     cmocka_unit_test(every_resolution),
        cmocka_unit_test(bad_options),  cmocka_unit_test(choice_and_crop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
