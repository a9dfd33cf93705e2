/* Modules of a small model, run one by one with a stack of adapters: what PyTorch computed is in the file REFERENCE, which the test
   defines. Include once. */
#include "formats/safetensors.h"
#include "graph/plan.h"
#include "lora/stack.h"
#include "tests/lora/memory_model.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static safetensors reference;
static checkpoint model;
static module_table *table;
static device *on; /* the CPU, then the Vulkan device */
static const char *device_name;
static float *blocks[64];
static int block_count;

static const float *reference_values(const safetensors_tensor *t) {
    float *values = safetensors_read_f32(&reference, t, NULL);
    blocks[block_count++] = values;
    return values;
}

static int setup(void **state) {
    (void)state;
    error err;
    if (!safetensors_open(&reference, REFERENCE, &err)) return -1;
    for (size_t i = 0; i < reference.count; i++) {
        const safetensors_tensor *t = &reference.tensors[i];
        bool weight = strncmp(t->name, "weight/", 7) == 0;
        if (!weight && strncmp(t->name, "bias/", 5) != 0) continue;
        const char *path = strchr(t->name, '/') + 1;
        checkpoint_part part = strncmp(path, "unet/", 5) == 0 ? CHECKPOINT_UNET : CHECKPOINT_TEXT_ENCODER;
        char name[256];
        snprintf(name, sizeof name, "%s.%s", strchr(path, '/') + 1, weight ? "weight" : "bias");
        memory_model_add(&model, part, name, t->rank, t->dims, reference_values(t));
    }
    memory_model_finish(&model);
    table = module_table_create(&model, &err);
    on = device_open(device_name, "fp32", 1, &err);
    return table && on ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    module_table_free(table);
    memory_model_free(&model);
    for (int i = 0; i < block_count; i++) free(blocks[i]);
    block_count = 0;
    safetensors_close(&reference);
    device_close(on);
    return 0;
}

/* The device of run 0 is the CPU, that of run 1 VULORA_TEST_GPU or the software Vulkan device. False: there is no such run. */
static bool device_choose(int number) {
    const char *named = getenv("VULORA_TEST_GPU");
    device_name = number == 0 ? "cpu" : named ? named : "llvmpipe";
    if (number != 1) return number == 0;
    error err;
    device *vulkan = device_open(device_name, "fp32", 0, &err);
    device_close(vulkan);
    if (!vulkan) print_message("skipped on Vulkan: %s\n", err.text);
    return vulkan != NULL;
}

/* ---- One module ---- */

/* [n, c, h, w] to [n, h, w, c] (to_engine) or back; other ranks are copied. Freed by the caller. */
static float *channels_moved(const float *from, int rank, const int64_t *nchw, bool to_engine) {
    int64_t n = nchw[0], c = nchw[1], pixels = rank == 4 ? nchw[2] * nchw[3] : 1, count = n * c * pixels;
    if (rank == 3) count = nchw[0] * nchw[1] * nchw[2];
    float *to = memory_new((size_t)count, sizeof *to);
    if (rank != 4) {
        memcpy(to, from, (size_t)count * sizeof *to);
        return to;
    }
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < c; j++)
            for (int64_t p = 0; p < pixels; p++) {
                int64_t file = (i * c + j) * pixels + p, engine = (i * pixels + p) * c + j;
                if (to_engine)
                    to[engine] = from[file];
                else
                    to[file] = from[engine];
            }
    return to;
}

static float *read_moved(const char *what, const char *key, int64_t dims[4], int *rank) {
    char name[256];
    snprintf(name, sizeof name, "%s/%s", what, key);
    const safetensors_tensor *t = safetensors_find(&reference, name);
    assert_non_null(t);
    float *values = safetensors_read_f32(&reference, t, NULL);
    *rank = t->rank;
    memcpy(dims, t->dims, 4 * sizeof *dims);
    float *moved = channels_moved(values, t->rank, dims, true);
    if (t->rank == 4) {
        int64_t c = dims[1];
        dims[1] = dims[2];
        dims[2] = dims[3];
        dims[3] = c;
    }
    free(values);
    return moved;
}

/* |a - b| / |b| */
static double difference(const float *a, const float *b, size_t n) {
    double sum = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        sum += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        size += (double)b[i] * (double)b[i];
    }
    return sqrt(sum / (size > 0 ? size : 1));
}

typedef struct run {
    weights *weights;
    tape *tape;
    tensor *x, *y, *target, *seed;
    float *x_values, *target_values;
} run;

static void (*run_begins)(tape *t); /* called before a module is recorded; may be NULL */

static int stride_of(const char *path) { return strstr(path, "downsamplers") ? 2 : 1; }

/* Records the module `key` ("unet/down_blocks...") with the stack. */
static run run_record(const char *key, adapter_stack *stack) {
    run r = {0};
    checkpoint_part part = strncmp(key, "unet/", 5) == 0 ? CHECKPOINT_UNET : CHECKPOINT_TEXT_ENCODER;
    const char *path = strchr(key, '/') + 1;
    int64_t dims[4];
    int rank;
    r.weights = weights_open(&model, part, on);
    r.tape = tape_create(on);
    r.x_values = read_moved("x", key, dims, &rank);
    r.x = tape_input(r.tape, "x", DTYPE_F32, rank, dims);
    if (run_begins) run_begins(r.tape);
    layer_scope scope = {.tape = r.tape, .weights = r.weights, .adapters = stack};
    bool norm = strstr(path, "norm") != NULL;
    r.y = norm && rank == 4 ? layer_group_norm(&scope, r.x, 4, 1e-5f, false, path)
          : norm            ? layer_layer_norm(&scope, r.x, 1e-5f, path)
          : rank == 4       ? layer_conv2d(&scope, r.x, NULL, NULL, stride_of(path), path)
                            : layer_linear(&scope, r.x, NULL, path);
    if (r.y) tape_keep(r.y);
    r.target_values = read_moved("target", key, dims, &rank);
    r.target = tape_input(r.tape, "target", DTYPE_F32, rank, dims);
    return r;
}

static plan *run_plan(run *r) {
    error err;
    plan *p = plan_create(r->tape, &err);
    if (!p) fail_msg("%s", err.text);
    assert_true(tensor_write(on, r->x, r->x_values, &err));
    return p;
}

static void run_free(run *r, plan *p) {
    plan_free(p);
    weights_close(r->weights);
    free(r->x_values);
    free(r->target_values);
}

/* Every module of the reference that the adapter has. Returns how many. */
static int for_each_module(adapter *a, void (*check)(const char *key, adapter *a, adapter_stack *stack), adapter_stack *stack) {
    int count = 0;
    for (size_t i = 0; i < reference.count; i++) {
        if (strncmp(reference.tensors[i].name, "weight/", 7) != 0) continue;
        const char *key = reference.tensors[i].name + 7;
        checkpoint_part part = strncmp(key, "unet/", 5) == 0 ? CHECKPOINT_UNET : CHECKPOINT_TEXT_ENCODER;
        if (!adapter_find_module(a, part, strchr(key, '/') + 1)) continue;
        check(key, a, stack);
        count++;
    }
    return count;
}
