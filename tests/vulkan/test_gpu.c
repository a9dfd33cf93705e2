/* The Vulkan runtime on the software device: buffers, kernels by name, barriers, the pipeline cache, failures; and the matrix kernel in
   all its modes against plain loops. VULORA_TEST_GPU names another device. */
#include "base/file.h"
#include "base/memory.h"
#include "base/sha256.h"
#include "tests/support/validation.h"
#include "vulkan/internal.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

enum { MOST_DEVICES = 16 };

static void check(bool ok, const error *err) {
    if (!ok) fail_msg("%s", err->text);
}

/* The device under test, or -1. */
static int device_index(void) {
    gpu_info list[MOST_DEVICES];
    const char *name = getenv("VULORA_TEST_GPU");
    int count = gpu_list(list, MOST_DEVICES);
    for (int i = 0; i < count && i < MOST_DEVICES; i++)
        if (name ? strstr(list[i].name, name) != NULL : list[i].software) return list[i].index;
    return -1;
}

static int open_device(void **state) {
    error err;
    int index = device_index();
    gpu *g = index < 0 ? NULL : gpu_open(index, &err);
    if (index >= 0 && !g) print_message("%s\n", err.text);
    *state = g;
    return index >= 0 && !g ? -1 : 0;
}

static int close_device(void **state) {
    gpu_close(*state);
    return 0;
}

#define NEEDS_DEVICE \
    gpu *g = *state; \
    error err; \
    if (!g) skip()

static float *values_new(size_t n, uint32_t seed) {
    float *v = memory_new(n, sizeof *v);
    uint32_t x = seed * 2654435761u + 1u;
    for (size_t i = 0; i < n; i++) {
        x = x * 1664525u + 1013904223u;
        v[i] = (float)(x >> 8) / 8388608.0f - 1.0f;
    }
    return v;
}

static gpu_buffer *buffer_with(gpu *g, const float *values, size_t n, dtype type) {
    error err;
    gpu_buffer *b = gpu_buffer_create(g, n * dtype_size(type), &err);
    check(b != NULL, &err);
    void *stored = memory_new(n, dtype_size(type));
    dtype_from_f32(stored, type, values, n);
    check(gpu_upload(g, (gpu_range){b, 0, n * dtype_size(type)}, stored, &err), &err);
    free(stored);
    return b;
}

static float *values_read(gpu *g, gpu_buffer *b, size_t n, dtype type) {
    error err;
    void *stored = memory_new(n, dtype_size(type));
    float *v = memory_new(n, sizeof *v);
    check(gpu_download(g, (gpu_range){b, 0, n * dtype_size(type)}, stored, &err), &err);
    dtype_to_f32(v, stored, type, n);
    free(stored);
    return v;
}

static double distance(const float *a, const float *b, size_t n) {
    double d = 0, s = 0;
    for (size_t i = 0; i < n; i++) {
        d += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        s += (double)a[i] * (double)a[i];
    }
    return sqrt(d / (s + 1e-30));
}

static void test_info(void **state) {
    NEEDS_DEVICE;
    const gpu_info *info = gpu_get_info(g);
    const gpu_limits *limits = gpu_get_limits(g);
    assert_true(info->name[0] && info->driver[0] && !info->refused[0]);
    assert_true(info->memory_bytes > 0 && info->subgroup_size > 0);
    assert_true(limits->offset_alignment >= 16 && limits->push_bytes == 128 && limits->shared_bytes >= 32768);
    assert_null(gpu_open(99, &err));
    assert_non_null(strstr(err.text, "vulkan:99"));
}

static void test_no_driver(void **state) {
    (void)state;
    /* In a child: the loader reads its environment once. */
    char command[512];
    char self[256];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n <= 0) skip();
    self[n] = 0;
    snprintf(command, sizeof command, "VK_DRIVER_FILES=/nonexistent.json VK_ICD_FILENAMES=/nonexistent.json VULORA_TEST_COUNT=1 '%s'",
             self);
    assert_int_equal(system(command), 0);
}

static void test_buffers(void **state) {
    NEEDS_DEVICE;
    gpu_buffer *b = gpu_buffer_create(g, 1001, &err), *many[200];
    check(b != NULL, &err);
    unsigned char bytes[1001], back[1001];
    check(gpu_download(g, (gpu_range){b, 0, 1001}, back, &err), &err);
    for (int i = 0; i < 1001; i++) {
        assert_int_equal(back[i], 0);
        bytes[i] = (unsigned char)(i * 7);
    }
    check(gpu_upload(g, (gpu_range){b, 0, 1001}, bytes, &err), &err);
    check(gpu_download(g, (gpu_range){b, 501, 500}, back, &err), &err);
    assert_memory_equal(back, bytes + 501, 500);
    assert_false(gpu_upload(g, (gpu_range){b, 1000, 100}, bytes, &err));
    /* Small buffers share memory without touching each other. */
    for (int i = 0; i < 200; i++) {
        float v = (float)i;
        many[i] = buffer_with(g, &v, 1, DTYPE_F32);
    }
    for (int i = 0; i < 200; i += 2) gpu_buffer_free(many[i]);
    for (int i = 1; i < 200; i += 2) {
        float *v = values_read(g, many[i], 1, DTYPE_F32);
        assert_true(*v == (float)i);
        free(v);
        gpu_buffer_free(many[i]);
    }
    gpu_buffer_free(b);
}

/* The same through a staging buffer, as on a card, and with more than it holds. */
static void test_staging(void **state) {
    if (!*state) skip();
    setenv("VULORA_VK_STAGING", "1", 1);
    error err;
    gpu *g = gpu_open(device_index(), &err);
    unsetenv("VULORA_VK_STAGING");
    check(g != NULL, &err);
    assert_false(g->mapped);
    void *own = g;
    test_buffers(&own);
    size_t n = GPU_STAGING_BYTES / 4 + 1000;
    float *sent = values_new(n, 5);
    gpu_buffer *b = buffer_with(g, sent, n, DTYPE_F32);
    float *got = values_read(g, b, n, DTYPE_F32);
    assert_memory_equal(sent, got, n * sizeof *sent);
    free(sent);
    free(got);
    gpu_buffer_free(b);
    gpu_close(g);
}

static void test_too_large(void **state) {
    NEEDS_DEVICE;
    assert_null(gpu_buffer_create(g, (size_t)1 << 50, &err));
    assert_non_null(strstr(err.text, "memory"));
}

/* y = a + scale * b, fp32 */
static void record_add(gpu_recording *rec, gpu_range a, gpu_range b, gpu_range y, uint32_t count, float scale, const char *name) {
    struct {
        uint32_t count;
        float scale;
    } push = {count, scale};
    gpu_range ranges[] = {a, b, y};
    uint32_t constants[] = {1}; /* elements a thread */
    gpu_dispatch d = {.shader = name,
                      .constants = constants,
                      .constant_count = 1,
                      .push = &push,
                      .push_bytes = sizeof push,
                      .ranges = ranges,
                      .range_count = 3,
                      .written = 4,
                      .groups = {(count + 127) / 128, 1, 1}};
    gpu_record(rec, &d, count);
}

static void run_barriers(gpu *g, int expected_barriers) {
    error err;
    enum { N = 256, BYTES = N * 4 };
    float *ones = memory_new(4 * N, sizeof *ones);
    for (int i = 0; i < 4 * N; i++) ones[i] = 1;
    gpu_buffer *b = buffer_with(g, ones, 4 * N, DTYPE_F32);
    free(ones);
    gpu_range part[4];
    for (size_t i = 0; i < 4; i++) part[i] = (gpu_range){b, i * BYTES, BYTES};
    gpu_recording *rec = gpu_recording_begin(g);
    record_add(rec, part[0], part[0], part[1], N, 1, "add_fff"); /* 2 */
    record_add(rec, part[0], part[0], part[2], N, 2, "add_fff"); /* 3, independent */
    record_add(rec, part[1], part[2], part[3], N, 1, "add_fff"); /* 5, waits */
    record_add(rec, part[0], part[0], part[1], N, 3, "add_fff"); /* 4, waits: the last one reads it */
    gpu_counts counts = gpu_recording_count(rec);
    assert_int_equal(counts.dispatches, 4);
    assert_int_equal(counts.barriers, expected_barriers);
    check(gpu_recording_end(rec, &err), &err);
    for (int run = 0; run < 3; run++) check(gpu_run(rec, &err), &err);
    gpu_recording_free(rec);
    float *v = values_read(g, b, 4 * N, DTYPE_F32);
    for (int i = 0; i < N; i++) assert_true(v[i] == 1 && v[N + i] == 4 && v[2 * N + i] == 3 && v[3 * N + i] == 5);
    free(v);
    gpu_buffer_free(b);
}

static void test_barriers(void **state) {
    NEEDS_DEVICE;
    (void)err;
    run_barriers(g, 2);
}

/* Every submission begins with a barrier of its own. */
static void test_pieces(void **state) {
    NEEDS_DEVICE;
    (void)err;
    gpu_pace usual = g->pace;
    g->pace = (gpu_pace){1, 1e12, 300}; /* less than two of these dispatches */
    run_barriers(g, 0);
    g->pace = usual;
}

static void test_bad_dispatches(void **state) {
    NEEDS_DEVICE;
    gpu_buffer *b = gpu_buffer_create(g, 4096, &err);
    gpu_range whole = {b, 0, 4096}, outside = {b, 4096, 16}, crooked = {b, 4, 16};
    const struct {
        gpu_range range;
        const char *shader, *says;
    } bad[] = {{whole, "no_such_kernel", "no kernel"}, {outside, "add_fff", "range"}, {crooked, "add_fff", "range"}};
    for (int i = 0; i < 3; i++) {
        gpu_recording *rec = gpu_recording_begin(g);
        record_add(rec, bad[i].range, whole, whole, 16, 1, bad[i].shader);
        assert_false(gpu_recording_end(rec, &err));
        assert_non_null(strstr(err.text, bad[i].shader));
        assert_non_null(strstr(err.text, bad[i].says));
        gpu_recording_free(rec);
    }
    gpu_buffer_free(b);
}

/* ---- the pipeline cache ---- */

/* Opens the device, runs one kernel, and closes it, which leaves a cache file. between: done while it is open; may be NULL. */
static void one_start(int index, void (*between)(int index)) {
    error err;
    gpu *g = gpu_open(index, &err);
    check(g != NULL, &err);
    gpu_buffer *b = gpu_buffer_create(g, 64, &err);
    gpu_recording *rec = gpu_recording_begin(g);
    gpu_range r = {b, 0, 64};
    record_add(rec, r, r, r, 16, 1, "add_fff");
    if (between) between(index);
    check(gpu_recording_end(rec, &err) && gpu_run(rec, &err), &err);
    gpu_recording_free(rec);
    gpu_buffer_free(b);
    gpu_close(g);
}

static void another_start(int index) { one_start(index, NULL); }

/* The one file there, under the name it has. */
static char *cache_file(const char *folder) {
    char command[128], line[300] = "";
    snprintf(command, sizeof command, "ls %s/vulora/pipelines-*.bin", folder);
    FILE *list = popen(command, "r");
    assert_non_null(fgets(line, sizeof line, list));
    assert_int_equal(pclose(list), 0);
    line[strcspn(line, "\n")] = 0;
    return memory_string(line);
}

/* Damaged ones are ignored and replaced; so are intact ones of another device, whatever their name. */
static void spoil(const char *path, int round) {
    size_t size;
    error err;
    char *text = file_read_text(path, 1 << 26, &size, &err);
    check(text != NULL, &err);
    assert_true(size >= GPU_DIGEST_BYTES + sizeof(VkPipelineCacheHeaderVersionOne));
    text[GPU_DIGEST_BYTES + offsetof(VkPipelineCacheHeaderVersionOne, vendorID)] ^= 1;
    if (round == 1) {
        char hex[GPU_DIGEST_BYTES + 1];
        sha256 hash;
        sha256_init(&hash);
        sha256_update(&hash, text + GPU_DIGEST_BYTES, size - GPU_DIGEST_BYTES);
        sha256_hex(&hash, hex);
        memcpy(text, hex, GPU_DIGEST_BYTES);
    }
    check(file_write_all(path, text, round == 2 ? 5 : size, &err), &err);
    free(text);
}

static void test_pipeline_cache(void **state) {
    (void)state;
    int index = device_index();
    if (index < 0) skip();
    char folder[] = "/tmp/vulora-cache-XXXXXX", command[512];
    assert_non_null(mkdtemp(folder));
    char *old = getenv("XDG_CACHE_HOME") ? memory_string(getenv("XDG_CACHE_HOME")) : NULL;
    setenv("XDG_CACHE_HOME", folder, 1);
    one_start(index, NULL);
    char *path = cache_file(folder);
    for (int round = 0; round < 3; round++) {
        spoil(path, round);
        one_start(index, another_start); /* two at once: each reads and writes whole files */
        char *now = cache_file(folder);
        size_t size;
        assert_string_equal(now, path);
        char *text = file_read_text(path, 1 << 26, &size, NULL);
        assert_true(size > GPU_DIGEST_BYTES && strspn(text, "0123456789abcdef") >= GPU_DIGEST_BYTES);
        free(text);
        free(now);
    }
    /* Where nothing can be written, everything works all the same. */
    char *file = memory_format("%s/vulora", path);
    setenv("XDG_CACHE_HOME", path, 1);
    one_start(index, NULL);
    setenv("XDG_CACHE_HOME", file, 1);
    one_start(index, NULL);
    free(file);
    free(path);
    if (old)
        setenv("XDG_CACHE_HOME", old, 1);
    else
        unsetenv("XDG_CACHE_HOME");
    free(old);
    snprintf(command, sizeof command, "rm -r %s", folder);
    assert_int_equal(system(command), 0);
}

/* ---- gemm.comp against loops ---- */

typedef struct product {
    uint32_t m, n, k;
    bool columns, kn; /* A [k, m]; B [k, n] */
    uint32_t splits;
    uint32_t tile[4]; /* bm, bn, tm, tn */
} product;

static void expected_product(const product *p, const float *a, const float *b, const float *bias, const float *residual, float *c) {
    for (size_t i = 0; i < p->m; i++)
        for (size_t j = 0; j < p->n; j++) {
            double sum = 0;
            for (size_t l = 0; l < p->k; l++)
                sum += (double)a[p->columns ? l * p->m + i : i * p->k + l] * (double)b[p->kn ? l * p->n + j : j * p->k + l];
            c[i * p->n + j] = (float)(0.5 * sum + (double)bias[j] + (double)residual[i * p->n + j]);
        }
}

static void run_product(gpu *g, const product *p, gpu_range ranges[6], const char *shader) {
    error err;
    uint32_t a4 = p->columns ? p->m % 4 == 0 : p->k % 4 == 0, b4 = p->kn ? p->n % 4 == 0 : p->k % 4 == 0;
    const uint32_t *t = p->tile;
    uint32_t flags = p->splits == 1 ? 1 | 4 : 0; /* bias, residual */
    uint32_t access = a4 | b4 << 1 | (uint32_t)(p->n % 4 == 0) << 2 | flags << 3;
    uint32_t constants[] = {t[0] / t[2] * (t[1] / t[3]), t[0], t[1], 16, t[2], t[3], p->columns, p->kn, access, 1, 0, 1};
    float scale = 0.5f;
    uint32_t push[20] = {p->m, p->n, p->k, 1, p->columns ? p->m : p->k, p->kn ? p->n : p->k, p->n};
    push[16] = p->splits, push[17] = p->m * p->n;
    memcpy(&push[19], &scale, sizeof scale);
    gpu_dispatch d = {.shader = shader,
                      .constants = constants,
                      .constant_count = 12,
                      .push = push,
                      .push_bytes = sizeof push,
                      .ranges = ranges,
                      .range_count = 6,
                      .written = 4,
                      .groups = {(p->m + t[0] - 1) / t[0], (p->n + t[1] - 1) / t[1], p->splits}};
    gpu_recording *rec = gpu_recording_begin(g);
    gpu_record(rec, &d, 2.0 * p->m * p->n * p->k);
    check(gpu_recording_end(rec, &err) && gpu_run(rec, &err), &err);
    gpu_recording_free(rec);
}

static void check_product(gpu *g, const product *p, dtype type) {
    size_t na = (size_t)p->m * p->k, nb = (size_t)p->n * p->k, nc = (size_t)p->m * p->n;
    float *a = values_new(na, 1), *b = values_new(nb, 2), *bias = values_new(p->n, 3), *residual = values_new(nc, 4);
    float *expected = memory_new(nc, sizeof(float));
    expected_product(p, a, b, bias, residual, expected);
    gpu_buffer *buffers[] = {buffer_with(g, a, na, type), buffer_with(g, b, nb, type), NULL, buffer_with(g, bias, p->n, DTYPE_F32),
                             buffer_with(g, residual, nc, type)};
    error err;
    dtype out = p->splits > 1 ? DTYPE_F32 : type;
    buffers[2] = gpu_buffer_create(g, nc * p->splits * dtype_size(out), &err);
    check(buffers[2] != NULL, &err);
    size_t s = dtype_size(type);
    gpu_range ranges[] = {{buffers[0], 0, na * s},
                          {buffers[1], 0, nb * s},
                          {buffers[2], 0, nc * p->splits * dtype_size(out)},
                          {buffers[3], 0, p->n * 4},
                          {buffers[2], 0, nc * p->splits * dtype_size(out)},
                          {buffers[4], 0, nc * s}};
    run_product(g, p, ranges, type == DTYPE_F32 ? "gemm_fff" : p->splits > 1 ? "gemm_hhf" : "gemm_hhh");
    float *got = values_read(g, buffers[2], nc * p->splits, out);
    if (p->splits > 1) /* the parts are plain products */
        for (size_t i = 0; i < nc; i++) {
            float sum = 0;
            for (size_t k = 0; k < p->splits; k++) sum += got[k * nc + i];
            got[i] = sum + bias[i % p->n] + residual[i];
        }
    double e = distance(expected, got, nc);
    if (!(e < (type == DTYPE_F32 ? 1e-5 : 3e-3)))
        fail_msg("gemm %u x %u x %u, columns %d, kn %d, splits %u, tile %u x %u, %s: error %.2e", p->m, p->n, p->k, p->columns, p->kn,
                 p->splits, p->tile[0], p->tile[1], dtype_name(type), e);
    for (int i = 0; i < 5; i++) gpu_buffer_free(buffers[i]);
    free(a), free(b), free(bias), free(residual), free(expected), free(got);
}

/* The parts of a split sum as the kernel leaves them. */
static float *product_parts(gpu *g, const product *p) {
    size_t na = (size_t)p->m * p->k, nb = (size_t)p->n * p->k, nc = (size_t)p->m * p->n * p->splits;
    float *a = values_new(na, 1), *b = values_new(nb, 2);
    error err;
    gpu_buffer *x = buffer_with(g, a, na, DTYPE_F32), *y = buffer_with(g, b, nb, DTYPE_F32), *z = gpu_buffer_create(g, nc * 4, &err);
    check(z != NULL, &err);
    gpu_range c = {z, 0, nc * 4}, ranges[] = {{x, 0, na * 4}, {y, 0, nb * 4}, c, c, c, c};
    run_product(g, p, ranges, "gemm_fff");
    float *got = values_read(g, z, nc, DTYPE_F32);
    gpu_buffer_free(x), gpu_buffer_free(y), gpu_buffer_free(z);
    free(a), free(b);
    return got;
}

/* Whatever a launch is cut into, the same bits come out: products over three axes, and a kernel that reckons with whole rows. */
static void test_parts(void **state) {
    NEEDS_DEVICE;
    (void)err;
    static const product p = {100, 90, 300, true, true, 4, {16, 64, 4, 4}};
    float *whole = product_parts(g, &p);
    gpu_pace usual = g->pace;
    for (double part = 2; part < 200; part *= 3) {
        g->pace = (gpu_pace){1, 1e18, 2.0 * 100 * 90 * 300 / part};
        float *cut = product_parts(g, &p);
        assert_memory_equal(whole, cut, p.m * p.n * p.splits * sizeof *cut);
        free(cut);
    }
    g->pace = usual;
    free(whole);
}

/* A schedule follows what was measured: a step that is faster than expected ends in one submission, a slower one in more. */
static void test_adjustment(void **state) {
    NEEDS_DEVICE;
    gpu_buffer *b = gpu_buffer_create(g, 4096, &err);
    gpu_range parts[] = {{b, 0, 1024}, {b, 1024, 1024}};
    gpu_pace usual = g->pace;
    g->pace = (gpu_pace){1, 1e18, 300}; /* seconds: far more than 64 additions of 256 take */
    gpu_recording *rec = gpu_recording_begin(g);
    for (int i = 0; i < 64; i++) record_add(rec, parts[i % 2], parts[i % 2], parts[(i + 1) % 2], 256, 1, "add_fff");
    check(gpu_recording_end(rec, &err), &err);
    assert_int_equal(gpu_recording_count(rec).submissions, 64);
    check(gpu_run(rec, &err), &err);
    assert_int_equal(gpu_recording_count(rec).submissions, g->tick_s > 0 ? 1 : 64);
    check(gpu_run(rec, &err), &err);
    assert_true(gpu_recording_count(rec).longest_s > 0 || g->tick_s <= 0);
    g->pace.piece_s = 1e-7;
    check(gpu_run(rec, &err), &err);
    assert_true(gpu_recording_count(rec).submissions > 1 || g->tick_s <= 0);
    check(gpu_run(rec, &err), &err);
    g->pace = usual;
    gpu_recording_free(rec);
    gpu_buffer_free(b);
}

static void test_gemm(void **state) {
    NEEDS_DEVICE;
    (void)err;
    static const product products[] = {
        {1, 1, 1, false, false, 1, {32, 32, 4, 4}},     {33, 20, 48, false, false, 1, {32, 32, 4, 4}},
        {65, 68, 36, false, true, 1, {64, 64, 8, 8}},   {70, 33, 7, true, true, 1, {32, 32, 4, 4}},
        {8, 100, 300, true, true, 4, {16, 64, 4, 4}},   {100, 8, 64, false, false, 1, {64, 16, 4, 4}},
        {129, 130, 17, false, true, 1, {64, 64, 8, 8}}, {16, 64, 40, true, false, 8, {16, 64, 4, 4}},
    };
    for (size_t i = 0; i < sizeof products / sizeof *products; i++) {
        check_product(g, &products[i], DTYPE_F32);
        if (gpu_get_info(g)->fp16_storage) check_product(g, &products[i], DTYPE_F16);
    }
}

int main(void) {
    if (getenv("VULORA_TEST_COUNT")) return gpu_list(NULL, 0);
    validation_begin();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_info),      cmocka_unit_test(test_no_driver),      cmocka_unit_test(test_buffers),
        cmocka_unit_test(test_too_large), cmocka_unit_test(test_barriers),       cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_staging),   cmocka_unit_test(test_bad_dispatches), cmocka_unit_test(test_pipeline_cache),
        cmocka_unit_test(test_gemm),      cmocka_unit_test(test_parts),          cmocka_unit_test(test_adjustment),
    };
    return validation_end(cmocka_run_group_tests(tests, open_device, close_device));
}
