/* Devices that are smaller than the software device, or lack something: the same results where they can be used at all, and a reason where
   not. The validation layer checks every call by the smaller limits. */
#include "tests/cli/small_device.h"

#include <jansson.h>

/* The least of everything that is not refused, all at once; memory that the host does not see. */
#define SMALLEST \
    "range=2097152,allocation=8388608,push=128,threads=256,threads_x=256,groups=2048,shared=32768,buffers=10,alignment=256,separate=1," \
    "no_clock=1,no_fp16=1,"
#define PROBE "probe unet --model model.safetensors --lora lora.safetensors --input input.safetensors " ON_DEVICE
#define DRAW "generate --model model.safetensors --width 64 --height 64 --steps 1 --seed 1 --prompt wall " ON_DEVICE

/* sample [1, 4, 8, 8], timestep [1], encoder_hidden_states [1, 77, 64] */
static void write_input(const char *folder) {
    enum { SAMPLE = 256, TEXT = 77 * TINY_TEXT_WIDTH, COUNT = SAMPLE + 1 + TEXT };
    static char file[8 + 512 + 4 * COUNT];
    int length = snprintf(file + 8, 512,
                          "{\"sample\":{\"dtype\":\"F32\",\"shape\":[1,4,8,8],\"data_offsets\":[0,%d]},"
                          "\"timestep\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[%d,%d]},"
                          "\"encoder_hidden_states\":{\"dtype\":\"F32\",\"shape\":[1,77,%d],\"data_offsets\":[%d,%d]}}",
                          4 * SAMPLE, 4 * SAMPLE, 4 * SAMPLE + 4, TINY_TEXT_WIDTH, 4 * SAMPLE + 4, 4 * COUNT);
    uint64_t header = (uint64_t)length;
    memcpy(file, &header, sizeof header);
    for (int i = 0; i < COUNT; i++) {
        float v = i == SAMPLE ? 500.0f : (float)(i * 37 % 101) / 50.0f - 1.0f;
        memcpy(file + 8 + length + 4 * i, &v, sizeof v);
    }
    folder_write(folder, "input.safetensors", file, (size_t)(8 + length + 4 * COUNT));
}

static int setup(void **state) {
    int result = small_device_open(state, "test-device-limits");
    if (*state) write_input(*state);
    return result;
}

/* ---- the same results ---- */

static void training_on_the_smallest_device(void **state) {
    NEEDS_SMALL_DEVICE;
    expect_run("", TRAIN_ON_DEVICE "--steps 1 --precision fp16 --output plain/me.safetensors");
    int64_t largest = vulkan_layer_seen("seen", "largest_allocation");
    expect_run(SMALLEST, TRAIN_ON_DEVICE "--steps 1 --precision fp16 --output small/me.safetensors");
    expect_same_files("plain/me.safetensors", "small/me.safetensors");
    assert_true(largest > 8388608 && vulkan_layer_seen("seen", "largest_allocation") == 8388608);
    assert_true(vulkan_layer_seen("seen", "allocations") > 3);
    /* Kernels are built several at a time, and no wait is without end. */
    assert_true(vulkan_layer_seen("seen", "most_building") > 1 || sysconf(_SC_NPROCESSORS_ONLN) == 1);
    assert_in_range(vulkan_layer_seen("seen", "longest_wait_s"), 60, 600);
}

static void drawing_on_the_smallest_device(void **state) {
    NEEDS_SMALL_DEVICE;
    expect_run("", DRAW "--output plain.png");
    expect_run(SMALLEST, DRAW "--output small.png");
    expect_same_files("plain.png", "small.png");
}

/* Without half floats in memory everything is fp32; and then nothing depends on the size of subgroups. */
static void evaluating_without_half_floats(void **state) {
    NEEDS_SMALL_DEVICE;
    expect_run("", PROBE "--precision fp32 --output plain.safetensors");
    expect_run(SMALLEST "no_16bit=1,subgroup=4,subgroup_least=4,subgroup_most=4", PROBE "--output few.safetensors");
    expect_same_files("plain.safetensors", "few.safetensors");
    expect_run("carved=1048576,no_16bit=1,subgroup=64,subgroup_least=64,subgroup_most=64", PROBE "--output many.safetensors");
    expect_same_files("plain.safetensors", "many.safetensors");
    static const char *const says[] = {"--precision fp16", "does not offer it", NULL};
    expect_failure("no_16bit=1", PROBE "--precision fp16 --output none.safetensors", says);
}

/* ---- what does not fit ---- */

static void tensors_beyond_a_limit_are_named(void **state) {
    NEEDS_SMALL_DEVICE;
    static const char *const says[] = {"llvmpipe", "MiB this device can address at once", NULL};
    expect_failure("range=65536", DRAW "--output none.png", says);
    expect_failure("allocation=65536", TRAIN_ON_DEVICE "--steps 1 --output none.safetensors",
                   (const char *const[]){"llvmpipe", "MiB", NULL});
    static const char *const groups[] = {"workgroups along", "the device takes 1 to 4", NULL};
    expect_failure("groups=4", DRAW "--output none.png", groups);
    assert_false(file_exists("none.safetensors") || file_exists("none.png"));
}

static void the_budget_of_other_programs_is_respected(void **state) {
    NEEDS_SMALL_DEVICE;
    static const char *const says[] = {"memory", "llvmpipe", "--device cpu", NULL};
    program_result r = run_with("budget=1500000000,usage=500000000", "devices");
    assert_non_null(strstr(r.out, "free 954 MiB"));
    program_result_free(&r);
    expect_failure("budget=12000000,usage=2000000", TRAIN_ON_DEVICE "--steps 1 --output none.safetensors", says);
}

/* ---- devices that cannot be used ---- */

static void a_lack_is_named(void **state) {
    NEEDS_SMALL_DEVICE;
    static const char *const rows[][2] = {{"minor=1", "Vulkan 1.1, 1.2 is needed"},
                                          {"no_queue=1", "no compute queue"},
                                          {"shared=16384", "16384 bytes of shared memory (maxComputeSharedMemorySize), 32768 are needed"},
                                          {"threads=128", "128 threads in a workgroup"},
                                          {"threads_x=64", "64 threads in a workgroup"},
                                          {"push=64", "64 bytes of push constants (maxPushConstantsSize)"},
                                          {"buffers=4", "4 storage buffers in a shader"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        program_result r = run_with(rows[i][0], "devices --json");
        assert_int_equal(r.status, 0);
        json_t *root = json_loads(r.out, 0, NULL), *device = json_array_get(json_object_get(root, "devices"), 1);
        const char *refused = json_string_value(json_object_get(device, "refused"));
        if (!refused || !strstr(refused, rows[i][1])) fail_msg("%s: %s", rows[i][0], r.out);
        json_decref(root);
        program_result_free(&r);
        const char *const says[] = {"--device llvmpipe", "cannot be used", rows[i][1], NULL};
        expect_failure(rows[i][0], DRAW "--output none.png", says);
    }
    program_result r = run_with("shared=16384", "devices");
    assert_non_null(strstr(r.out, "cannot be used: 16384 bytes"));
    program_result_free(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(training_on_the_smallest_device),
                                       cmocka_unit_test(drawing_on_the_smallest_device),
                                       cmocka_unit_test(evaluating_without_half_floats),
                                       cmocka_unit_test(tensors_beyond_a_limit_are_named),
                                       cmocka_unit_test(the_budget_of_other_programs_is_respected),
                                       cmocka_unit_test(a_lack_is_named)};
    return cmocka_run_group_tests(tests, setup, small_device_close);
}
