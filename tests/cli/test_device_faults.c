/* A device that is lost, hangs or has no memory left while it works: what was saved is whole and --resume reaches the bytes of a training
   that was never disturbed; the message says what is kept and what to do. */
#include "tests/cli/small_device.h"

#define TRAIN TRAIN_ON_DEVICE "--targets mid_block --precision fp32 --cache-dir cache "
#define TWO "--steps 2 "

static int64_t submits, allocations; /* of the undisturbed training: two submissions a step, gradient and update */

static int setup(void **state) {
    int result = small_device_open(state, "test-device-faults");
    if (!*state || result) return result;
    expect_run("", TRAIN "--steps 1 --output first/me.safetensors"); /* which encodes the pictures for all others */
    expect_run("", TRAIN TWO "--output calm/me.safetensors");
    submits = vulkan_layer_seen("seen", "submits");
    allocations = vulkan_layer_seen("seen", "allocations");
    return 0;
}

static void fails_at(const char *fault, int64_t count, const char *arguments, const char *const *says) {
    char settings[64];
    snprintf(settings, sizeof settings, "%s=%lld", fault, (long long)count);
    expect_failure(settings, arguments, says);
}

/* In the gradient of step 2, and the same from there on. */
static void lost_in_a_step(void **state) {
    NEEDS_SMALL_DEVICE;
    static const char *const says[] = {"lost the device", "update the driver", "The state of step 1 is kept",
                                       "the same command with --resume", NULL};
    fails_at("lost_submit", submits - 1, TRAIN TWO "--save-every-n-steps 1 --output lost/me.safetensors", says);
    assert_true(file_exists("lost/me-step00000001.safetensors"));
    assert_false(file_exists("lost/me.safetensors"));
    assert_int_equal(folder_count("lost"), 2);
    expect_run("", TRAIN TWO "--output lost/me.safetensors --resume");
    expect_same_files("lost/me.safetensors", "calm/me.safetensors");
    expect_same_files("lost/me.state.safetensors", "calm/me.state.safetensors");
}

/* In the update of step 2: half of the adapter may be new. */
static void lost_before_anything_was_saved(void **state) {
    NEEDS_SMALL_DEVICE;
    static const char *const says[] = {"lost the device", "1 step done is lost", "--save-every-n-steps", NULL};
    fails_at("lost_wait", submits, TRAIN TWO "--output early/me.safetensors", says);
    assert_int_equal(folder_count("early"), 0);
}

static void a_hung_device_is_given_up(void **state) {
    NEEDS_SMALL_DEVICE;
    static const char *const says[] = {"does not answer any more", "restart", "The state of step 1 is kept", "--resume", NULL};
    fails_at("stuck_wait", submits - 1, TRAIN TWO "--save-every-n-steps 1 --output hung/me.safetensors", says);
    assert_in_range(vulkan_layer_seen("seen", "longest_wait_s"), 60, 600);
    assert_int_equal(folder_count("hung"), 2);
}

/* No room for a preview's picture: what was trained is still there and is saved. */
static void memory_runs_out_between_steps(void **state) {
    NEEDS_SMALL_DEVICE;
    folder_text(*state, "prompts.txt", "wall --w 64 --h 64 --s 1 --d 1\n");
    static const char *const says[] = {"out of device memory", "smaller batch", "Adapter and state of step 1 were saved", "--resume", NULL};
    fails_at("no_memory", allocations + 1, TRAIN TWO "--sample-prompts prompts.txt --sample-every-n-steps 1 --output full/me.safetensors",
             says);
    assert_true(file_exists("full/me.safetensors"));
    expect_same_files("full/me.state.safetensors", "first/me.state.safetensors");
}

static void memory_runs_out_at_the_start(void **state) {
    NEEDS_SMALL_DEVICE;
    static const char *const says[] = {"out of device memory", "close other programs", NULL};
    fails_at("no_memory", 2, TRAIN TWO "--output none.safetensors", says);
    fails_at("no_memory", 1, "generate --model model.safetensors --steps 1 --prompt wall --output none.png " ON_DEVICE, says);
    assert_false(file_exists("none.safetensors") || file_exists("none.png"));
}

static void a_kernel_does_not_compile(void **state) {
    NEEDS_SMALL_DEVICE;
    static const char *const says[] = {"compiling the kernel", "update it, or use --device cpu", NULL};
    fails_at("bad_pipeline", 5, TRAIN TWO "--output none.safetensors", says);
}

static void lost_while_drawing(void **state) {
    NEEDS_SMALL_DEVICE;
    static const char *const says[] = {"lost the device", "start again", NULL};
    fails_at("lost_submit", 2,
             "generate --model model.safetensors --width 64 --height 64 --steps 1 --prompt wall --output none.png " ON_DEVICE, says);
    assert_false(file_exists("none.png"));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(lost_in_a_step),
                                       cmocka_unit_test(lost_before_anything_was_saved),
                                       cmocka_unit_test(a_hung_device_is_given_up),
                                       cmocka_unit_test(memory_runs_out_between_steps),
                                       cmocka_unit_test(memory_runs_out_at_the_start),
                                       cmocka_unit_test(a_kernel_does_not_compile),
                                       cmocka_unit_test(lost_while_drawing)};
    return cmocka_run_group_tests(tests, setup, small_device_close);
}
