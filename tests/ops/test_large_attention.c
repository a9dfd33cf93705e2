/* The attention kernels for graphics cards, run on the software device all the same, against the CPU, with their gradients: heads of SD1.5
   and others, tokens that fill blocks and that do not, several images. VULORA_TEST_GPU names another device. */
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

static const shape shapes[] = {
    {2, 70, 77, 2, 40, false}, {1, 65, 64, 1, 24, true},   {1, 33, 32, 1, 88, false},
    {1, 64, 96, 1, 80, true},  {1, 45, 77, 1, 160, false}, {2, 530, 77, 1, 40, false} /* parts of the queries */
};

/* The result, then the gradients of q, k and v. */
enum { RESULTS = 4 };

static void check(bool ok, const error *err) {
    if (!ok) fail_msg("%s", err->text);
}

static tensor *constant(tensor_pool *pool, const shape *s, int64_t tokens, const float *values) {
    error err;
    tensor *x = tensor_pool_constant(pool, "operand", DTYPE_F32, 3, (int64_t[]){s->images, tokens, s->heads * s->width}, values, &err);
    check(x != NULL, &err);
    return x;
}

typedef struct results {
    size_t count[RESULTS];
    float *values[RESULTS];
} results;

static results run(device *d, const shape *s) {
    error err;
    tensor_pool *pool = tensor_pool_create(d);
    tape *t = tape_create(d);
    tensor *in[3], *keep[RESULTS];
    float *operands[3]; /* a device that computes in this type uses them as they are */
    for (int i = 0; i < 3; i++) {
        int64_t tokens = i == 0 ? s->queries : s->keys;
        operands[i] = case_values((uint64_t)i + 1, (size_t)(s->images * s->heads * s->width * tokens), 2, 0);
        in[i] = constant(pool, s, tokens, operands[i]);
        in[i]->needs_grad = true;
    }
    tensor *o = op_attention(t, in[0], in[1], in[2], (int)s->heads, false);
    if (!o) fail_msg("%s", tape_error(t));
    tensor *given = tape_input(t, "gradient", DTYPE_COUNT, o->rank, o->dim);
    tape_set_grad(o, given);
    const record *r = tape_record(t, 0);
    r->op->backward(t, r);
    keep[0] = o;
    for (int i = 0; i < 3; i++) keep[i + 1] = tape_get_grad(in[i]);
    for (int i = 0; i < RESULTS; i++) tape_keep(keep[i]);
    plan *p = plan_create(t, &err);
    check(p != NULL, &err);
    float *values = case_values(4, (size_t)tensor_count(given), 1, 0);
    check(tensor_write(d, given, values, &err) && plan_run(p, &err), &err);
    free(values);
    results out;
    for (int i = 0; i < RESULTS; i++) {
        out.count[i] = (size_t)tensor_count(keep[i]);
        out.values[i] = memory_new(out.count[i], sizeof *values);
        check(tensor_read(d, keep[i], out.values[i], &err), &err);
    }
    plan_free(p);
    tensor_pool_free(pool);
    for (int i = 0; i < 3; i++) free(operands[i]);
    return out;
}

static bool launched(const gpu *g, const char *shader) {
    for (int i = 0; i < g->pipeline_count; i++)
        if (strncmp(g->pipelines[i]->shader, shader, strlen(shader)) == 0) return true;
    return false;
}

/* Every shape, by the kernels of that name. Gradients hold two roundings more. */
static void compare_all(device *vulkan, device *cpu, const char *shader) {
    const double most[RESULTS] = {1e-3, 1e-3, 1e-3, 1e-3};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const shape *s = &shapes[i];
        vulkan->gpu->info.mixed_fma = s->halfs;
        results expected = run(cpu, s), got = run(vulkan, s);
        for (int k = 0; k < RESULTS; k++) {
            double e = relative_error(got.values[k], expected.values[k], got.count[k]);
            if (!(e < most[k]))
                fail_msg("%d queries, %d keys, head %d, result %d: error %g", (int)s->queries, (int)s->keys, (int)s->width, k, e);
            free(expected.values[k]), free(got.values[k]);
        }
    }
    const char *const parts[] = {"", "_keys", "_queries"};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        char name[64];
        snprintf(name, sizeof name, "%s%s", shader, parts[i]);
        assert_true(launched(vulkan->gpu, name));
    }
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
