/* --trace: what a training did, to the tensor. */
#include "base/file.h"
#include "base/memory.h"
#include "lora/start.h"
#include "train/internal.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Lines of steps after `step` are dropped: a resumed training writes them again. Returns the bytes to keep. */
static long kept_bytes(const char *path, int64_t step) {
    FILE *in = fopen(path, "rb");
    if (!in) return 0;
    char *line = NULL;
    size_t room = 0;
    long kept = 0;
    ssize_t length;
    while ((length = getline(&line, &room, in)) > 0 && line[length - 1] == '\n') {
        json_t *object = json_loadb(line, (size_t)length, 0, NULL);
        bool early = json_is_integer(json_object_get(object, "step")) && json_integer_value(json_object_get(object, "step")) <= step;
        json_decref(object);
        if (!early) break;
        kept += length;
    }
    free(line);
    fclose(in);
    return kept;
}

bool train_trace_open(trainer *t, error *err) {
    if (!t->options.trace_folder) return true;
    if (mkdir(t->options.trace_folder, 0777) != 0 && errno != EEXIST)
        return error_set(err, "--trace %s: cannot make the folder: %s", t->options.trace_folder, strerror(errno));
    char *path = memory_format("%s/trace.jsonl", t->options.trace_folder);
    long kept = t->step > 0 ? kept_bytes(path, t->step) : 0;
    if (t->step == 0) train_remove_old_tensors(t->options.trace_folder);
    t->trace = fopen(path, kept ? "r+b" : "wb");
    bool ok = t->trace && fseek(t->trace, kept, SEEK_SET) == 0 && ftruncate(fileno(t->trace), kept) == 0;
    if (!ok) error_set(err, "--trace: cannot write %s: %s", path, strerror(errno));
    free(path);
    return ok;
}

static json_t *describe(const trainer *t, const dataset_item *item) {
    const dataset_image *image = &t->data->images[item->image];
    bucket_size size = t->data->buckets[image->bucket];
    return json_pack("{s:s, s:I, s:b, s:[iiii], s:[ii]}", "path", image->path, "repeat", (json_int_t)item->repeat, "flip", item->flip,
                     "crop", image->crop.x, image->crop.y, image->crop.width, image->crop.height, "bucket", size.width, size.height);
}

static bool write_line(trainer *t, json_t *line, error *err) {
    char *text = json_dumps(line, JSON_COMPACT | JSON_REAL_PRECISION(9));
    bool ok = text && fputs(text, t->trace) >= 0 && fputc('\n', t->trace) != EOF && fflush(t->trace) == 0;
    free(text);
    return ok || error_set(err, "--trace %s: writing failed: %s", t->options.trace_folder, strerror(errno));
}

bool train_trace_line(trainer *t, const traced_step *s, error *err) {
    if (!t->trace) return true;
    json_t *images = json_array(), *captions = json_array(), *timesteps = json_array();
    for (int b = 0; b < s->batch_count; b++)
        for (int i = 0; i < s->batches[b].tensors.n; i++) {
            const dataset_item *item = &s->batches[b].items[i];
            json_array_append_new(images, describe(t, item));
            json_array_append_new(captions, json_string(t->data->images[item->image].caption));
            json_array_append_new(timesteps, json_integer(s->batches[b].tensors.timesteps[i]));
        }
    /* A gradient that did not fit fp16 has no norm, and JSON no infinity. */
    json_t *norm = isfinite(s->grad_norm) ? json_real((double)s->grad_norm) : json_null();
    json_t *line =
        json_pack("{s:I, s:I, s:o, s:o, s:o, s:f, s:o, s:{s:f, s:f}, s:f}", "step", (json_int_t)s->step, "epoch", (json_int_t)s->epoch,
                  "images", images, "captions", captions, "timesteps", timesteps, "loss", (double)s->loss, "grad_norm", norm, "lr", "unet",
                  s->rates[CHECKPOINT_UNET], "text_encoder", s->rates[CHECKPOINT_TEXT_ENCODER], "seconds", s->seconds);
    bool ok = line && write_line(t, line, err);
    json_decref(line);
    return ok;
}

/* ---- tensors ---- */

bool train_trace_wants_tensors(const trainer *t, int64_t step) { return t->trace && step <= t->options.trace_tensors; }

static float *keep(trace_tensors *x, size_t count) {
    x->buffers = memory_grow(x->buffers, (size_t)x->count + 1, sizeof(float *));
    return x->buffers[x->count++] = memory_new(count, sizeof(float));
}

/* Of PiSSA: the change is measured from these. */
static bool keep_starts(trainer *t, trace_tensors *x, error *err) {
    bool ok = true;
    for (int i = 0; ok && i < 2 * t->adapter->module_count; i++) {
        const adapter_module *m = &t->adapter->modules[i / 2];
        const adapter_tensor *a = &m->tensors[i % 2];
        if (!m->start[i % 2]) continue;
        float *values = keep(x, (size_t)adapter_tensor_elements(a));
        char *name = memory_format("start/%s", a->name);
        ok = adapter_start_read(t->adapter, m, i % 2, values, err) &&
             safetensors_writer_add_f32(&x->writer, name, DTYPE_F32, a->rank, a->dims, values, err);
        free(name);
    }
    return ok;
}

/* Scaling is not trained: one alpha a module, told once. */
static bool keep_alphas(trainer *t, trace_tensors *x, error *err) {
    bool ok = true;
    for (int i = 0; ok && i < t->adapter->module_count; i++) {
        const adapter_module *m = &t->adapter->modules[i];
        float *alpha = keep(x, 1);
        *alpha = (float)m->alpha;
        char *name = memory_format("before/%s.alpha", m->info->flat);
        ok = safetensors_writer_add_f32(&x->writer, name, DTYPE_F32, 0, NULL, alpha, err);
        free(name);
    }
    return ok;
}

bool train_trace_adapter(trainer *t, trace_tensors *x, const char *prefix, error *err) {
    bool ok = strcmp(prefix, "before") != 0 || (keep_alphas(t, x, err) && keep_starts(t, x, err));
    for (int i = 0; ok && i < adapter_tensor_count(t->adapter); i++) {
        const adapter_tensor *a = adapter_tensor_at(t->adapter, i, NULL);
        float *values = keep(x, (size_t)adapter_tensor_elements(a));
        char *name = memory_format("%s/%s", prefix, a->name);
        ok = (strcmp(prefix, "grad") == 0 ? learner_read_grad(t->learner, i, values, err)
                                          : learner_read_value(t->learner, i, values, err)) &&
             safetensors_writer_add_f32(&x->writer, name, DTYPE_F32, a->rank, a->dims, values, err);
        free(name);
    }
    return ok;
}

/* Adds a tensor of one batch under `name`, or `name.1`, `name.2`, ... for the further batches of an accumulated step. */
static bool add(trace_tensors *x, const char *name, int batch, dtype type, int rank, const int64_t *dims, const void *data, error *err) {
    char full[64];
    if (batch)
        snprintf(full, sizeof full, "%s.%d", name, batch);
    else
        snprintf(full, sizeof full, "%s", name);
    return safetensors_writer_add(&x->writer, full, type, rank, dims, data, err);
}

bool train_trace_batch(trainer *t, trace_tensors *x, const traced_batch *b, int number, float *states, error *err) {
    const learner_batch *l = &b->tensors;
    const int64_t image[] = {l->n, t->pipeline->model.config.vae_latent_channels, l->h, l->w}, ids[] = {l->n, TOKENIZER_LENGTH};
    const int64_t text[] = {l->n, t->pipeline->text.positions, t->pipeline->text.width};
    return add(x, "latents", number, DTYPE_F32, 4, image, l->latents, err) && add(x, "noise", number, DTYPE_F32, 4, image, l->noise, err) &&
           add(x, "timestep", number, DTYPE_I32, 1, (int64_t[]){l->n}, l->timesteps, err) &&
           add(x, "input_ids", number, DTYPE_I32, 2, ids, b->ids, err) &&
           add(x, "encoder_hidden_states", number, DTYPE_F32, 3, text, states, err);
}

bool train_trace_tensors_write(trainer *t, trace_tensors *x, int64_t step, const float *loss, error *err) {
    char *path = memory_format("%s/step-%06" PRId64 ".safetensors", t->options.trace_folder, step);
    bool ok = safetensors_writer_add(&x->writer, "loss", DTYPE_F32, 0, NULL, loss, err) && safetensors_writer_write(&x->writer, path, err);
    free(path);
    return ok;
}

void train_trace_tensors_free(trace_tensors *x) {
    safetensors_writer_free(&x->writer);
    for (int i = 0; i < x->count; i++) free(x->buffers[i]);
    free(x->buffers);
}
