#include "graph/device.h"

#include "base/machine.h"
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
    cpu_tiny_to_zero(d->threads);
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

const char *device_kernels_name(const device *d) { return !d->kernels ? "portable" : d->bf16 ? d->kernels->name : d->kernels->fp32; }

const char *device_precision(const device *d) { return d->bf16 ? "bf16" : d->activation == DTYPE_F16 ? "fp16" : "fp32"; }

void device_close(device *d) {
    if (!d) return;
    if (d->gpu) gpu_close(d->gpu);
    free(d);
}

/* ---- room ---- */

device_room device_get_room(const device *d) {
    device_room room;
    if (d->gpu) {
        room.free = room.most = gpu_memory_free(d->gpu);
    } else {
        machine_memory m = machine_get_memory("");
        room = (device_room){m.free, m.most > d->live_bytes ? m.most - d->live_bytes : 0};
    }
    if (!d->memory_limit) return room;
    uint64_t rest = d->memory_limit > d->live_bytes ? d->memory_limit - d->live_bytes : 0;
    if (room.free > rest) room.free = rest;
    if (room.most > rest) room.most = rest;
    return room;
}

/* ---- pools ---- */

typedef struct pool_entry {
    tensor tensor; /* first: a constant's address is its entry's */
    tensor_pool *pool;
    char *name;
    constant_source source; /* of a constant that is not loaded yet */
    dtype source_type;
    bool loaded, packable;
    void *owned; /* CPU memory to free */
    gpu_buffer *buffer;
    struct pool_entry *next;
} pool_entry;

/* Parameters of a pool on Vulkan lie side by side, so that the optimizer takes many of them at once. */
enum { SLAB_BYTES = 4 << 20, SLAB_ALIGNMENT = 256 /* at least any device's minStorageBufferOffsetAlignment */ };

typedef struct slab {
    gpu_buffer *buffer;
    size_t bytes, used;
    struct slab *next;
} slab;

struct tensor_pool {
    device *device;
    pool_entry *entries;
    slab *slabs; /* the first one is being filled */
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
    for (slab *s = pool->slabs, *next; s; s = next) {
        next = s->next;
        gpu_buffer_free(s->buffer);
        free(s);
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
    e->pool = pool;
    e->name = memory_string(name);
    e->tensor = (tensor){.home = home, .type = type, .rank = rank, .name = e->name};
    for (int i = 0; i < rank; i++) e->tensor.dim[i] = dim[i];
    e->tensor.bytes = (size_t)tensor_count(&e->tensor) * dtype_size(type);
    e->next = pool->entries;
    pool->entries = e;
    return e;
}

static bool check_range(const pool_entry *e, error *err) {
    size_t most = gpu_get_limits(e->pool->device->gpu)->range_bytes;
    return e->tensor.bytes <= most ||
           error_set(err, "%s: %.1f MiB, more than the %.1f MiB this device can address at once; try --precision fp16 or --device cpu",
                     e->name, (double)e->tensor.bytes / (1 << 20), (double)most / (1 << 20));
}

static bool entry_allocate_gpu(pool_entry *e, error *err) {
    gpu *g = e->pool->device->gpu;
    if (!check_range(e, err)) return false;
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

/* Puts the elements where kernels read them. owned: as in tensor_pool_constant_owned, or NULL; it is taken over also on failure. */
static bool entry_fill(pool_entry *e, const void *data, void *owned, error *err) {
    bool ok = true;
    tensor *t = &e->tensor;
    if (e->pool->device->gpu) {
        ok = entry_allocate_gpu(e, err) && upload_converted(e->pool->device->gpu, t, data, e->source_type, err);
        free(owned);
    } else if (t->type != e->source_type) {
        t->cpu = e->owned = memory_new((size_t)tensor_count(t), sizeof(float));
        dtype_to_f32(e->owned, data, e->source_type, (size_t)tensor_count(t));
        free(owned);
    } else {
        e->owned = owned;
        t->cpu = (void *)(uintptr_t)data;
    }
    e->loaded = ok;
    return ok;
}

static tensor *add_constant(tensor_pool *pool, const char *name, dtype type, int rank, const int64_t *dim, const void *data, void *owned,
                            error *err) {
    pool_entry *e = entry_new(pool, TENSOR_CONSTANT, name, constant_type(pool->device, type, rank), rank, dim);
    e->source_type = type;
    account(pool, e->tensor.bytes);
    return entry_fill(e, data, owned, err) ? &e->tensor : NULL;
}

tensor *tensor_pool_constant(tensor_pool *pool, const char *name, dtype type, int rank, const int64_t *dim, const void *data, error *err) {
    return add_constant(pool, name, type, rank, dim, data, NULL, err);
}

tensor *tensor_pool_constant_owned(tensor_pool *pool, const char *name, dtype type, int rank, const int64_t *dim, void *data, error *err) {
    return add_constant(pool, name, type, rank, dim, data, data, err);
}

tensor *tensor_pool_declare(tensor_pool *pool, const char *name, dtype type, int rank, const int64_t *dim, constant_source source) {
    pool_entry *e = entry_new(pool, TENSOR_CONSTANT, name, constant_type(pool->device, type, rank), rank, dim);
    e->source = source;
    e->source_type = type;
    bool readable = type == DTYPE_F32 || type == DTYPE_F16 || type == DTYPE_BF16;
    e->packable = !pool->device->gpu && (rank == 2 || rank == 3) && readable;
    return &e->tensor;
}

static cpu_weights weights_of(const pool_entry *e, const void *data) {
    const int64_t *dim = e->tensor.dim;
    if (e->tensor.rank == 2) return (cpu_weights){data, e->source_type, 1, dim[0], dim[1]};
    return (cpu_weights){data, e->source_type, (int)dim[0], dim[1], dim[2]};
}

void tensor_set_packed(tensor *constant, bool wanted) {
    pool_entry *e = (pool_entry *)constant;
    const cpu_kernels *kernels = e->pool->device->kernels;
    if (constant->packed == wanted || !e->packable || (wanted && (e->loaded || !kernels || !kernels->pack))) return;
    if (e->loaded) {
        e->pool->bytes -= constant->bytes;
        e->pool->device->live_bytes -= constant->bytes;
        free(e->owned);
        e->owned = NULL;
        e->loaded = false;
    }
    constant->packed = wanted;
    constant->bytes = (size_t)tensor_count(constant) * dtype_size(constant->type);
    if (wanted) {
        cpu_weights w = weights_of(e, NULL);
        constant->bytes = kernels->pack_bytes(&w);
    }
}

static bool entry_pack(pool_entry *e, const void *data, void *owned, error *err) {
    cpu_weights w = weights_of(e, data);
    e->tensor.cpu = e->owned = memory_try_aligned(e->tensor.bytes);
    e->loaded = e->owned != NULL;
    if (e->loaded) e->pool->device->kernels->pack(&w, e->owned);
    free(owned);
    return e->loaded || error_set(err, "%s: not enough memory for %zu bytes", e->name, e->tensor.bytes);
}

bool tensor_is_loaded(const tensor *constant) { return ((const pool_entry *)(const void *)constant)->loaded; }

static bool entry_load(pool_entry *e, error *err) {
    void *owned = NULL;
    const void *data = e->source.get(e->source.user, &owned, err);
    if (!data || !(e->tensor.packed ? entry_pack(e, data, owned, err) : entry_fill(e, data, owned, err))) return false;
    if ((owned || e->tensor.cpu != data) && e->source.done) e->source.done(e->source.user);
    return true;
}

bool tensor_load_constants(tensor *const *constants, int count, error *err) {
    bool ok = true, on_cpu = count > 0 && !((pool_entry *)constants[0])->pool->device->gpu;
    /* Most of the time goes into pages that are touched for the first time, which threads do side by side. */
#pragma omp parallel for schedule(dynamic) if (on_cpu)
    for (int i = 0; i < count; i++) {
        pool_entry *e = (pool_entry *)constants[i];
        error why;
        bool go_on, loaded;
#pragma omp atomic read
        go_on = ok;
        if (!go_on || e->loaded) continue;
        loaded = entry_load(e, &why);
#pragma omp critical(constants)
        if (loaded) {
            account(e->pool, e->tensor.bytes);
        } else {
            if (err) *err = why;
#pragma omp atomic write
            ok = false;
        }
    }
    return ok;
}

static slab *slab_with_room(tensor_pool *pool, size_t bytes, error *err) {
    if (pool->slabs && pool->slabs->used + bytes <= pool->slabs->bytes) return pool->slabs;
    size_t all = bytes > SLAB_BYTES ? bytes : SLAB_BYTES;
    gpu_buffer *buffer = gpu_buffer_create(pool->device->gpu, all, err);
    if (!buffer) return NULL;
    slab *s = memory_new(1, sizeof *s);
    *s = (slab){buffer, all, 0, pool->slabs};
    return pool->slabs = s;
}

static bool entry_place_in_slab(pool_entry *e, error *err) {
    size_t bytes = (e->tensor.bytes + SLAB_ALIGNMENT - 1) / SLAB_ALIGNMENT * SLAB_ALIGNMENT;
    if (!check_range(e, err)) return false;
    slab *s = slab_with_room(e->pool, bytes, err);
    if (!s) return error_prefix(err, "%s", e->name);
    e->tensor.gpu = (gpu_range){s->buffer, s->used, e->tensor.bytes};
    s->used += bytes;
    return true;
}

tensor *tensor_pool_parameter(tensor_pool *pool, const char *name, int rank, const int64_t *dim, error *err) {
    pool_entry *e = entry_new(pool, TENSOR_PARAMETER, name, DTYPE_F32, rank, dim);
    account(pool, e->tensor.bytes);
    if (pool->device->gpu) return entry_place_in_slab(e, err) ? &e->tensor : NULL;
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
