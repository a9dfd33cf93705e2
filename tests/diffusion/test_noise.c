#include "diffusion/random.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "tests/ops/case_file.h"

#include <math.h>

static void compare_noise(const case_file *f, random_source source, uint64_t seed, size_t n) {
    size_t count;
    const float *expected = case_file_need(f, &count, NULL, "%s.%llu.%zu", random_source_name(source), (unsigned long long)seed, n);
    float out[512];
    random_noise noise;
    random_noise_init(&noise, source, seed);
    random_noise_fill(&noise, out, n);
    random_noise_fill(&noise, out + n, n);
    assert_int_equal(count, 2 * n);
    for (size_t i = 0; i < count; i++) assert_true(fabsf(out[i] - expected[i]) < 1e-6f);
}

static void test_noise_like_pytorch(void **state) {
    (void)state;
    static const uint64_t seeds[] = {0, 42, 4294967295, 123456789012345};
    static const size_t sizes[] = {1, 5, 15, 16, 17, 31, 32, 100, 256};
    case_file f;
    error err;
    assert_true(case_file_open(&f, "diffusion_random.safetensors", &err));
    for (size_t s = 0; s < sizeof seeds / sizeof *seeds; s++) {
        for (size_t n = 0; n < sizeof sizes / sizeof *sizes; n++) compare_noise(&f, RANDOM_SOURCE_CPU, seeds[s], sizes[n]);
        compare_noise(&f, RANDOM_SOURCE_GPU, seeds[s], 64);
    }
    case_file_close(&f);
}

/* torch.manual_seed(0); torch.randn(3, 4, device="cuda") on a real GPU, as webui's source documents it. */
static void test_noise_like_cuda(void **state) {
    (void)state;
    static const float expected[12] = {-0.92466259f, -0.42534415f, -2.6438457f,  0.14518388f,  -0.12086647f, -0.57972564f,
                                       -0.62285122f, -0.32838709f, -1.07454231f, -0.36314407f, -1.67105067f, 2.26550497f};
    float out[12];
    random_noise noise;
    random_noise_init(&noise, RANDOM_SOURCE_GPU, 0);
    random_noise_fill(&noise, out, 12);
    for (int i = 0; i < 12; i++) assert_true(fabsf(out[i] - expected[i]) < 1e-6f);
}

static void test_source_names(void **state) {
    (void)state;
    random_source source = RANDOM_SOURCE_GPU;
    error err;
    assert_true(random_source_find(&source, "cpu", &err));
    assert_int_equal(source, RANDOM_SOURCE_CPU);
    assert_false(random_source_find(&source, "dice", &err));
    assert_non_null(strstr(err.text, "dice"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_noise_like_pytorch),
        cmocka_unit_test(test_noise_like_cuda),
        cmocka_unit_test(test_source_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
