/* Memory on the device: the plan is printed and kept to, and what does not fit into the driver's budget is refused before it is loaded. */
#include "tests/cli/small_device.h"

#include <inttypes.h>

/* Eight images a picture, so that a large batch is a full one. */
#define TRAIN_MANY \
    "train --model model.safetensors --data many --resolution 64 --rank 2 --steps 1 --precision fp16 --output me.safetensors " ON_DEVICE
#define DRAW_LARGE "generate --model model.safetensors --steps 1 --prompt wall --output a.png --width 256 --height 256 " ON_DEVICE

static int setup(void **state) {
    int result = small_device_open(state, "test-device-memory");
    if (!*state) return result;
    folder_text(*state, "many/8_wall/none.txt", "");
    for (unsigned i = 0; i < 2; i++) {
        char path[32];
        snprintf(path, sizeof path, "many/8_wall/%u.png", i);
        if (!tiny_png_write(path, 64, 64, i)) return -1;
    }
    return result;
}

/* Of 2 GB in the driver's budget so much is not used by anybody. */
static const char *with_free(int64_t mebibytes) {
    static char settings[80];
    snprintf(settings, sizeof settings, "budget=2000000000,usage=%" PRId64, 2000000000 - (mebibytes << 20));
    return settings;
}

/* The number of bytes behind a word of the memory plan: "memory: 37.3 MiB = model 16.5 MiB + ..." */
static double planned(const char *text, const char *word) {
    double value = 0;
    char unit = 0;
    const char *at = strstr(text, word);
    assert_non_null(at);
    assert_int_equal(sscanf(at + strlen(word), "%lf %c", &value, &unit), 2);
    assert_true(unit == 'K' || unit == 'M' || unit == 'G');
    return value * (unit == 'K' ? 1024.0 : unit == 'M' ? 1048576.0 : 1073741824.0);
}

static void the_plan_is_kept_to(void **state) {
    NEEDS_SMALL_DEVICE;
    const double share = 32 << 20; /* small buffers lie together in allocations of that size */
    program_result r = run_with("", TRAIN_MANY "--batch-size 2 --verbose");
    if (r.status != 0) fail_msg("status %d: %s", r.status, r.err);
    double all = planned(r.err, "memory: "), used = planned(r.err, "memory used on the device at most: ");
    double parts = planned(r.err, "= model ") + planned(r.err, "adapter and optimizer ") + planned(r.err, "activations ");
    if (used > all * 1.05 || used < all * 0.95) fail_msg("%.0f bytes planned, %.0f used", all, used);
    assert_true(parts > all * 0.98 && parts < all * 1.02);
    double allocated = (double)vulkan_layer_seen("seen", "most_bytes");
    if (allocated < used || allocated > all * 1.05 + share) fail_msg("%.0f bytes planned, %.0f allocated", all, allocated);
    program_result_free(&r);
}

static void a_training_that_does_not_fit_is_refused(void **state) {
    NEEDS_SMALL_DEVICE;
    const char *const smaller[] = {"memory: ", "--gradient-checkpointing is on", "What would fit: --batch-size 8 (", NULL};
    const char *const offers[] = {"What would fit: --gradient-checkpointing (", NULL};
    const char *const nothing[] = {"nothing smaller fits", "--device cpu", NULL};
    unlink("me.safetensors");
    expect_failure(with_free(20), TRAIN_MANY "--batch-size 16", smaller);
    assert_true(vulkan_layer_seen("seen", "pipelines") < 10); /* the optimizer's: no step was recorded */
    expect_failure(with_free(30), TRAIN_MANY "--batch-size 16 --no-gradient-checkpointing", offers);
    expect_failure(with_free(10), TRAIN_MANY "--batch-size 16", nothing);
    assert_false(file_exists("me.safetensors"));
    /* A limit of one's own works the same, on every device. */
    expect_failure("", TRAIN_MANY "--batch-size 16 --memory-limit 0.021", smaller);
}

static void a_picture_that_does_not_fit_is_refused(void **state) {
    NEEDS_SMALL_DEVICE;
    const char *const smaller[] = {"decoding a picture of 256x256", "--width 224 --height 224 would fit", NULL};
    const char *const nothing[] = {"256x256", "nothing smaller fits", NULL};
    expect_failure(with_free(24), DRAW_LARGE, smaller);
    expect_failure(with_free(10), DRAW_LARGE, nothing);
    assert_false(file_exists("a.png"));
}

int main(void) {
    validation_begin();
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_plan_is_kept_to), cmocka_unit_test(a_training_that_does_not_fit_is_refused),
                                       cmocka_unit_test(a_picture_that_does_not_fit_is_refused)};
    return validation_end(cmocka_run_group_tests_name("device memory", tests, setup, small_device_close));
}
