/* The attention kernels for graphics cards, run on the software device all the same, against the CPU: heads of SD1.5 and others, keys that
   fill blocks and that do not, several images. VULORA_TEST_GPU names another device. */
#include "graph/plan.h"
#include "ops/ops.h"
#include "tests/support/validation.h"
#include "vulkan/internal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "case_file.h"

typedef struct shape {
    int64_t images, queries, keys, heads, width;
    bool halfs; /* as on a device whose multiply-adds take them */
} shape;

static const shape shapes[] = {{2, 70, 77, 2, 40, false}, {1, 65, 64, 1, 24, true}, {1, 33, 32, 1, 88, false}};

static void check(bool ok, const error *err) {
    if (!ok) fail_msg("%s", err->text);
}

static tensor *constant(tensor_pool *pool, const shape *s, int64_t tokens, const float *values) {
    error err;
    tensor *x = tensor_pool_constant(pool, "operand", DTYPE_F32, 3, (int64_t[]){s->images, tokens, s->heads * s->width}, values, &err);
    check(x != NULL, &err);
    return x;
}

/* The result on that device. */
static float *run(device *d, const shape *s, const float *q, const float *k, const float *v) {
    error err;
    tensor_pool *pool = tensor_pool_create(d);
    tape *t = tape_create(d);
    tensor *o = op_attention(t, constant(pool, s, s->queries, q), constant(pool, s, s->keys, k), constant(pool, s, s->keys, v),
                             (int)s->heads, false);
    if (!o) fail_msg("%s", tape_error(t));
    tape_keep(o);
    plan *p = plan_create(t, &err);
    check(p != NULL, &err);
    float *values = memory_new((size_t)tensor_count(o), sizeof *values);
    check(plan_run(p, &err) && tensor_read(d, o, values, &err), &err);
    plan_free(p);
    tensor_pool_free(pool);
    return values;
}

static bool launched(const gpu *g, const char *shader) {
    for (int i = 0; i < g->pipeline_count; i++)
        if (strncmp(g->pipelines[i]->shader, shader, strlen(shader)) == 0) return true;
    return false;
}

/* Every shape, by the kernel of that name. */
static void compare_all(device *vulkan, device *cpu, const char *shader) {
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const shape *s = &shapes[i];
        vulkan->gpu->info.mixed_fma = s->halfs;
        size_t width = (size_t)(s->images * s->heads * s->width), count = width * (size_t)s->queries;
        float *q = case_values(1, count, 1, 0), *k = case_values(2, width * (size_t)s->keys, 1, 0);
        float *v = case_values(3, width * (size_t)s->keys, 1, 0);
        float *expected = run(cpu, s, q, k, v), *got = run(vulkan, s, q, k, v);
        double e = relative_error(got, expected, count);
        if (!(e < 1e-3)) fail_msg("%d queries, %d keys, head %d: error %g", (int)s->queries, (int)s->keys, (int)s->width, e);
        free(q), free(k), free(v), free(expected), free(got);
    }
    assert_true(launched(vulkan->gpu, shader));
}

static void test_kernel(const char *shader, bool matrix) {
    error err;
    const char *name = getenv("VULORA_TEST_GPU");
    device *vulkan = device_open(name ? name : "llvmpipe", "fp16", 0, &err), *cpu = device_open("cpu", "fp32", 0, NULL);
    const gpu_info *info = vulkan ? gpu_get_info(vulkan->gpu) : NULL;
    if (!info || !info->shuffles || (matrix && (!info->matrix_size || !gpu_has_shader(shader)))) {
        print_message("skipped: %s\n", info ? "the device lacks what the kernel needs" : err.text);
        device_close(vulkan);
        device_close(cpu);
        skip();
    }
    if (!matrix) vulkan->gpu->info.matrix_size = 0;
    compare_all(vulkan, cpu, shader);
    device_close(vulkan);
    device_close(cpu);
}

static void test_half(void **state) {
    (void)state;
    test_kernel("attention_half", false);
}

static void test_matrix(void **state) {
    (void)state;
    test_kernel("attention_matrix", true);
}

int main(void) {
    setenv("VULORA_VK_LARGE_KERNELS", "1", 1);
    validation_begin();
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_half), cmocka_unit_test(test_matrix)};
    return validation_end(cmocka_run_group_tests(tests, NULL, NULL));
}
