#include "graph/device.h"

#include "base/memory.h"

#include <ctype.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- choice ---- */

enum { MOST_GPUS = 16 };

static bool contains_ignoring_case(const char *text, const char *part) {
    size_t n = strlen(part);
    for (; *text; text++) {
        size_t i = 0;
        while (i < n && tolower((unsigned char)text[i]) == tolower((unsigned char)part[i])) i++;
        if (i == n) return true;
    }
    return false;
}

/* Discrete before integrated, then by memory. A software device is never chosen by itself. */
static const gpu_info *best_gpu(const gpu_info *list, int count) {
    const gpu_info *best = NULL;
    for (const gpu_info *i = list; i < list + count; i++) {
        if (i->software || *i->refused) continue;
        if (!best || i->discrete > best->discrete || (i->discrete == best->discrete && i->memory_bytes > best->memory_bytes)) best = i;
    }
    return best;
}

/* Sets *chosen to NULL for the CPU. */
static bool choose(const char *spec, const gpu_info *list, int count, const gpu_info **chosen, error *err) {
    *chosen = NULL;
    if (strcmp(spec, "cpu") == 0) return true;
    if (strcmp(spec, "auto") == 0) {
        *chosen = best_gpu(list, count);
        return true;
    }
    if (count == 0) return error_set(err, "--device %s: no Vulkan driver is installed here; use --device cpu", spec);
    if (strcmp(spec, "vulkan") == 0) {
        *chosen = best_gpu(list, count);
        for (int i = 0; i < count && !*chosen; i++)
            if (!*list[i].refused) *chosen = &list[i];
        if (!*chosen) return error_set(err, "--device vulkan: %s cannot be used: %s", list[0].name, list[0].refused);
        return true;
    }
    char *end;
    long number = strncmp(spec, "vulkan:", 7) == 0 ? strtol(spec + 7, &end, 10) : -1;
    bool numbered = number >= 0 && !*end && end != spec + 7;
    for (int i = 0; i < count && !*chosen; i++)
        if (numbered ? list[i].index == number : contains_ignoring_case(list[i].name, spec)) *chosen = &list[i];
    if (!*chosen) return error_set(err, "--device %s: no such device; `vulora devices` lists them", spec);
    if (*(*chosen)->refused) return error_set(err, "--device %s: %s cannot be used: %s", spec, (*chosen)->name, (*chosen)->refused);
    return true;
}

/* Products of bf16 need kernels that have them. */
static bool check_kernels(const device *d, error *err) {
    if (!d->bf16 || (d->kernels && d->kernels->bf16)) return true;
    const cpu_kernels *best = cpu_kernels_at(0);
    if (best && best->bf16)
        return error_set(err, "--precision bf16: --cpu-kernels %s has no bf16 products; use %s or --precision fp32",
                         d->kernels ? d->kernels->name : "portable", best->name);
    return error_set(err, "--precision bf16: this processor has no bf16 products; use fp32 or auto");
}

static bool choose_precision(device *d, const char *precision, error *err) {
    bool half = d->gpu && gpu_get_info(d->gpu)->fp16_storage;
    if (strcmp(precision, "auto") == 0)
        d->activation = half ? DTYPE_F16 : DTYPE_F32;
    else if (strcmp(precision, "fp32") == 0)
        d->activation = DTYPE_F32;
    else if (strcmp(precision, "fp16") == 0 && half)
        d->activation = DTYPE_F16;
    else if (!d->gpu && strcmp(precision, "bf16") == 0)
        d->bf16 = true, d->activation = DTYPE_F32;
    else if (!d->gpu)
        return error_set(err,
                         "--precision %s: the CPU computes in fp32 or bf16 (weights stay as the file has them); use one of these or auto",
                         precision);
    else
        return error_set(err, "--precision %s: %s does not offer it; use fp32 or auto", precision, d->name);
    return check_kernels(d, err);
}

device *device_open(const char *spec, const char *precision, int threads, error *err) {
    gpu_info list[MOST_GPUS];
    const gpu_info *chosen;
    int count = strcmp(spec, "cpu") == 0 ? 0 : gpu_list(list, MOST_GPUS);
    if (!choose(spec, list, count, &chosen, err)) return NULL;
    device *d = memory_new(1, sizeof *d);
    d->threads = threads > 0 ? threads : omp_get_num_procs();
    omp_set_num_threads(d->threads);
    d->kernels = cpu_kernels_at(0);
    snprintf(d->name, sizeof d->name, "%s", chosen ? chosen->name : "CPU");
    if ((chosen && !(d->gpu = gpu_open(chosen->index, err))) || !choose_precision(d, precision, err)) {
        device_close(d);
        return NULL;
    }
    return d;
}

bool device_set_kernels(device *d, const char *name, error *err) {
    return cpu_kernels_find(name, &d->kernels, err) && check_kernels(d, err);
}

const char *device_precision(const device *d) { return d->bf16 ? "bf16" : d->activation == DTYPE_F16 ? "fp16" : "fp32"; }

void device_close(device *d) {
    if (!d) return;
    if (d->gpu) gpu_close(d->gpu);
    free(d);
}

/* ---- pools ---- */

typedef struct pool_entry {
    tensor tensor;
    char *name;
    void *owned; /* CPU memory to free */
    gpu_buffer *buffer;
    struct pool_entry *next;
} pool_entry;

struct tensor_pool {
    device *device;
    pool_entry *entries;
    size_t bytes;
};

tensor_pool *tensor_pool_create(device *d) {
    tensor_pool *pool = memory_new(1, sizeof *pool);
    pool->device = d;
    return pool;
}

void tensor_pool_free(tensor_pool *pool) {
    if (!pool) return;
    for (pool_entry *e = pool->entries, *next; e; e = next) {
        next = e->next;
        if (e->buffer) gpu_buffer_free(e->buffer);
        free(e->owned);
        free(e->name);
        free(e);
    }
    pool->device->live_bytes -= pool->bytes;
    free(pool);
}

static void account(tensor_pool *pool, size_t bytes) {
    device *d = pool->device;
    pool->bytes += bytes;
    d->live_bytes += bytes;
    if (d->live_bytes > d->peak_bytes) d->peak_bytes = d->live_bytes;
}

static pool_entry *entry_new(tensor_pool *pool, tensor_home home, const char *name, dtype type, int rank, const int64_t *dim) {
    pool_entry *e = memory_new(1, sizeof *e);
    e->name = memory_string(name);
    e->tensor = (tensor){.home = home, .type = type, .rank = rank, .name = e->name};
    for (int i = 0; i < rank; i++) e->tensor.dim[i] = dim[i];
    e->tensor.bytes = (size_t)tensor_count(&e->tensor) * dtype_size(type);
    e->next = pool->entries;
    pool->entries = e;
    return e;
}

static bool entry_allocate_gpu(tensor_pool *pool, pool_entry *e, error *err) {
    gpu *g = pool->device->gpu;
    if (e->tensor.bytes > gpu_get_limits(g)->range_bytes)
        return error_set(err, "%s: %zu MiB, more than the %zu MiB this device can address at once; try --precision fp16 or --device cpu",
                         e->name, e->tensor.bytes >> 20, gpu_get_limits(g)->range_bytes >> 20);
    e->buffer = gpu_buffer_create(g, e->tensor.bytes, err);
    if (!e->buffer) return error_prefix(err, "%s", e->name);
    e->tensor.gpu = (gpu_range){e->buffer, 0, e->tensor.bytes};
    return true;
}

static bool upload_converted(gpu *g, tensor *t, const void *data, dtype from, error *err) {
    size_t n = (size_t)tensor_count(t);
    if (from == t->type) return gpu_upload(g, t->gpu, data, err);
    float *wide = memory_try_aligned(n * sizeof *wide);
    void *stored = t->type == DTYPE_F32 ? wide : memory_try_aligned(t->bytes);
    bool ok = wide && stored;
    if (!ok) error_set(err, "%s: not enough memory to convert it", t->name);
    if (ok) {
        dtype_to_f32(wide, data, from, n);
        if (t->type != DTYPE_F32) dtype_from_f32(stored, t->type, wide, n);
        ok = gpu_upload(g, t->gpu, stored, err);
    }
    if (stored != wide) free(stored);
    free(wide);
    return ok;
}

/* Vectors are small and every kernel reads them: fp32. Other constants stay as stored on the CPU. */
static dtype constant_type(const device *d, dtype stored, int rank) {
    if (rank == 1) return DTYPE_F32;
    return !d->gpu ? stored : d->activation;
}

static tensor *add_constant(tensor_pool *pool, const char *name, dtype type, int rank, const int64_t *dim, const void *data, void *owned,
                            error *err) {
    device *d = pool->device;
    pool_entry *e = entry_new(pool, TENSOR_CONSTANT, name, constant_type(d, type, rank), rank, dim);
    bool ok = true;
    if (d->gpu) {
        ok = entry_allocate_gpu(pool, e, err) && upload_converted(d->gpu, &e->tensor, data, type, err);
        free(owned);
    } else if (e->tensor.type != type) {
        e->tensor.cpu = e->owned = memory_new((size_t)tensor_count(&e->tensor), sizeof(float));
        dtype_to_f32(e->owned, data, type, (size_t)tensor_count(&e->tensor));
        free(owned);
    } else {
        e->owned = owned;
        e->tensor.cpu = (void *)(uintptr_t)data;
    }
    account(pool, e->tensor.bytes);
    return ok ? &e->tensor : NULL;
}

tensor *tensor_pool_constant(tensor_pool *pool, const char *name, dtype type, int rank, const int64_t *dim, const void *data, error *err) {
    return add_constant(pool, name, type, rank, dim, data, NULL, err);
}

tensor *tensor_pool_constant_owned(tensor_pool *pool, const char *name, dtype type, int rank, const int64_t *dim, void *data, error *err) {
    return add_constant(pool, name, type, rank, dim, data, data, err);
}

tensor *tensor_pool_parameter(tensor_pool *pool, const char *name, int rank, const int64_t *dim, error *err) {
    pool_entry *e = entry_new(pool, TENSOR_PARAMETER, name, DTYPE_F32, rank, dim);
    account(pool, e->tensor.bytes);
    if (pool->device->gpu) return entry_allocate_gpu(pool, e, err) ? &e->tensor : NULL;
    e->owned = memory_try_aligned(e->tensor.bytes);
    if (!e->owned) {
        error_set(err, "%s: not enough memory for %zu bytes", name, e->tensor.bytes);
        return NULL;
    }
    memset(e->owned, 0, e->tensor.bytes);
    e->tensor.cpu = e->owned;
    return &e->tensor;
}

/* ---- host access ---- */

/* A plan gives no memory to what none of its records touches. */
static bool has_memory(const device *d, const tensor *t) { return d->gpu ? t->gpu.buffer != NULL : t->cpu != NULL; }

bool tensor_write(device *d, tensor *t, const float *values, error *err) {
    if (!has_memory(d, t)) return true; /* an input that nobody reads */
    if (d->gpu) return upload_converted(d->gpu, t, values, DTYPE_F32, err);
    dtype_from_f32(t->cpu, t->type, values, (size_t)tensor_count(t));
    return true;
}

bool tensor_read(device *d, const tensor *t, float *values, error *err) {
    if (!has_memory(d, t)) return error_set(err, "%s: is not part of what was run", t->name ? t->name : "tensor");
    size_t n = (size_t)tensor_count(t);
    if (!d->gpu) {
        dtype_to_f32(values, t->cpu, t->type, n);
        return true;
    }
    if (t->type == DTYPE_F32) return gpu_download(d->gpu, t->gpu, values, err);
    void *stored = memory_try_aligned(t->bytes);
    if (!stored) return error_set(err, "not enough memory to read %zu bytes back", t->bytes);
    bool ok = gpu_download(d->gpu, t->gpu, stored, err);
    if (ok) dtype_to_f32(values, stored, t->type, n);
    free(stored);
    return ok;
}
