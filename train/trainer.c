#include "train/internal.h"

#include "base/memory.h"
#include "base/random.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Pictures seen by a training that was given neither steps nor epochs. */
enum { DEFAULT_PICTURES = 1600 };

/* ---- making ---- */

static int64_t batches_per_step(const trainer *t) { return t->options.learner.accumulation; }

static int64_t planned_steps(const trainer *t) {
    const train_options *o = &t->options;
    if (o->steps > 0) return o->steps;
    if (o->epochs > 0) return (o->epochs * t->batches + batches_per_step(t) - 1) / batches_per_step(t);
    int64_t pictures = o->batch_size * batches_per_step(t);
    return (DEFAULT_PICTURES + pictures - 1) / pictures;
}

int64_t train_epochs(const trainer *t) { return (t->steps * batches_per_step(t) + t->batches - 1) / t->batches; }

trainer *trainer_create(pipeline *p, const dataset *data, const train_options *options, error *err) {
    trainer *t = memory_new(1, sizeof *t);
    t->pipeline = p;
    t->data = data;
    t->options = *options;
    t->planned_epoch = -1;
    t->batches = (int64_t)dataset_epoch_batches(data, (size_t)options->batch_size);
    t->steps = planned_steps(t);
    t->options.adapter.train_text_encoder = options->text_rate > 0;
    t->options.adapter.seed = options->seed;
    t->options.learner.checkpoint = options->checkpoint == 1;
    t->adapter = adapter_create(&t->options.adapter, p->modules, p->device, err);
    if (t->adapter && !options->resume && !train_pissa_begin(t->adapter, err)) {
        adapter_free(t->adapter);
        t->adapter = NULL;
    }
    if (t->adapter) {
        adapter_stack_add(p->adapters, t->adapter, 1, 1);
        pipeline_adapters_changed(p);
        t->learner = learner_create(p, t->adapter, &t->options.learner, err);
    }
    if (t->learner && (!options->resume || train_state_load(t, err))) {
        t->kept = t->step;
        return t;
    }
    trainer_free(t);
    return NULL;
}

void trainer_free(trainer *t) {
    if (!t) return;
    learner_free(t->learner);
    if (t->adapter) {
        pipeline_adapters_changed(t->pipeline);
        adapter_stack_remove(t->pipeline->adapters, t->adapter);
    }
    for (int flip = 0; flip < 2; flip++) {
        for (size_t i = 0; t->latents[flip] && i < t->data->count; i++) {
            free(t->latents[flip][i].mean);
            free(t->latents[flip][i].logvar);
        }
        free(t->latents[flip]);
    }
    dataset_plan_free(&t->plan);
    if (t->trace) fclose(t->trace);
    free(t->ids);
    free(t->caption_of);
    free(t->contexts);
    free(t);
}

adapter *trainer_adapter(const trainer *t) { return t->adapter; }

/* ---- one batch ---- */

/* Latents are drawn from the posterior anew each time: mean + exp(logvar / 2) * noise, scaled. */
static void draw_latents(const trainer *t, const dataset_item *item, uint64_t counter, size_t count, float *out) {
    const posterior *p = &t->latents[item->flip][item->image];
    random_normal_fill(t->options.seed, RANDOM_STREAM_LATENT, counter, out, count);
    float scale = t->pipeline->model.config.vae_scaling_factor;
    for (size_t i = 0; i < count; i++) out[i] = scale * (p->mean[i] + expf(0.5f * p->logvar[i]) * out[i]);
}

static const dataset_batch *find_batch(trainer *t, int64_t number) {
    int64_t epoch = number / t->batches;
    if (epoch != t->planned_epoch) {
        dataset_plan_free(&t->plan);
        t->plan = dataset_epoch_plan(t->data, t->options.seed, (uint64_t)epoch, (size_t)t->options.batch_size);
        t->planned_epoch = epoch;
    }
    return &t->plan.batches[number % t->batches];
}

/* Everything batch `number` of the training needs; buffers are freed by batch_free. */
static traced_batch make_batch(trainer *t, int64_t number) {
    const dataset_batch *b = find_batch(t, number);
    bucket_size size = t->data->buckets[b->bucket];
    int n = (int)b->count, h = size.height / 8, w = size.width / 8;
    size_t image = (size_t)(t->pipeline->model.config.vae_latent_channels * h * w);
    size_t text = (size_t)(t->pipeline->text.positions * t->pipeline->text.width);
    float *latents = memory_new((size_t)n * image, sizeof *latents), *noise = memory_new((size_t)n * image, sizeof *noise);
    float *context = t->contexts ? memory_new((size_t)n * text, sizeof *context) : NULL;
    int *timesteps = memory_new((size_t)n, sizeof *timesteps);
    int32_t *ids = memory_new((size_t)n * TOKENIZER_LENGTH, sizeof *ids);
    const dataset_item *items = t->plan.items + b->first;
    for (int i = 0; i < n; i++) {
        uint64_t counter = random_counter((uint32_t)number, (uint32_t)i);
        uint32_t timestep;
        draw_latents(t, &items[i], counter, image, latents + (size_t)i * image);
        random_normal_fill(t->options.seed, RANDOM_STREAM_NOISE, counter, noise + (size_t)i * image, image);
        random_integers_fill(t->options.seed, RANDOM_STREAM_TIMESTEP, counter, SCHEDULE_TIMESTEPS, &timestep, 1);
        timesteps[i] = (int)timestep;
        memcpy(ids + i * TOKENIZER_LENGTH, t->ids + items[i].image * TOKENIZER_LENGTH, TOKENIZER_LENGTH * sizeof *ids);
        if (context) memcpy(context + (size_t)i * text, t->contexts + t->caption_of[items[i].image] * text, text * sizeof *context);
    }
    learner_batch tensors = {.n = n,
                             .h = h,
                             .w = w,
                             .latents = latents,
                             .noise = noise,
                             .timesteps = timesteps,
                             .ids = context ? NULL : ids,
                             .context = context};
    tensors.tokens = TOKENIZER_LENGTH;
    tensors.number = (uint64_t)number;
    return (traced_batch){.items = items, .tensors = tensors, .ids = ids};
}

static void batch_free(traced_batch *b) {
    free((void *)(uintptr_t)b->tensors.latents);
    free((void *)(uintptr_t)b->tensors.noise);
    free((void *)(uintptr_t)b->tensors.timesteps);
    free((void *)(uintptr_t)b->tensors.context);
    free(b->ids);
    *b = (traced_batch){0};
}

/* ---- one update ---- */

static double now_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static bool not_finite(trainer *t, int64_t step, const traced_batch *b, const char *what, error *err) {
    enum { NAMED = 3 };
    char names[600] = "";
    for (int i = 0; i < b->tensors.n && i < NAMED; i++)
        snprintf(names + strlen(names), sizeof names - strlen(names), "%s%.180s", i ? ", " : "", t->data->images[b->items[i].image].path);
    if (b->tensors.n > NAMED) snprintf(names + strlen(names), sizeof names - strlen(names), " and %d more", b->tensors.n - NAMED);
    t->spoilt = true;
    return error_set(err, "step %" PRId64 ": the %s is not finite any more (pictures: %s). A lower --lr usually helps%s", step, what, names,
                     strcmp(device_precision(t->pipeline->device), "fp32") ? ", or --precision fp32" : "");
}

static bool trace_inputs(trainer *t, trace_tensors *x, const traced_batch *b, int number, error *err) {
    size_t each = (size_t)(t->pipeline->text.positions * t->pipeline->text.width);
    x->buffers = memory_grow(x->buffers, (size_t)x->count + 1, sizeof(float *));
    float *states = x->buffers[x->count++] = memory_new((size_t)b->tensors.n * each, sizeof *states);
    if (b->tensors.context)
        memcpy(states, b->tensors.context, (size_t)b->tensors.n * each * sizeof *states);
    else if (!pipeline_encode_text(t->pipeline, b->ids, b->tensors.n, t->options.learner.clip_skip, states, err))
        return false;
    return train_trace_batch(t, x, b, number, states, err);
}

static bool gradients(trainer *t, traced_step *s, traced_batch *batches, trace_tensors *x, bool traced, error *err) {
    double sum = 0;
    for (int i = 0; i < s->batch_count; i++) {
        batches[i] = make_batch(t, (s->step - 1) * s->batch_count + i);
        /* make_batch may have planned a new epoch: items of an earlier batch would dangle, so they are copied. */
        size_t bytes = (size_t)batches[i].tensors.n * sizeof(dataset_item);
        dataset_item *items = memory_new(1, bytes);
        memcpy(items, batches[i].items, bytes);
        batches[i].items = items;
        float loss;
        if (traced && !trace_inputs(t, x, &batches[i], i, err)) return false;
        if (!learner_accumulate(t->learner, &batches[i].tensors, &loss, err)) return false;
        if (!isfinite(loss)) return not_finite(t, s->step, &batches[i], "loss", err);
        sum += (double)loss;
    }
    s->loss = (float)(sum / s->batch_count);
    return true;
}

static bool update(trainer *t, traced_step *s, const train_events *events, error *err) {
    bool applied;
    float rates[CHECKPOINT_PARTS];
    for (int part = 0; part < CHECKPOINT_PARTS; part++) rates[part] = (float)s->rates[part];
    t->spoilt = true; /* until train_step counts the update */
    if (!learner_update(t->learner, rates, &s->grad_norm, &applied, err)) return false;
    if (applied) return true;
    if (t->pipeline->device->activation != DTYPE_F16 || learner_loss_scale(t->learner) <= 1)
        return not_finite(t, s->step, s->batches, "gradient", err);
    if (events->note) {
        char text[160];
        snprintf(text, sizeof text,
                 "step %" PRId64 ": a gradient did not fit fp16; the step is skipped and the loss scaled by %g from now on", s->step,
                 (double)learner_loss_scale(t->learner));
        events->note(events->user, text);
    }
    return true;
}

static bool train_step(trainer *t, traced_step *s, const train_events *events, error *err) {
    double start = now_seconds();
    traced_batch *batches = memory_new((size_t)s->batch_count, sizeof *batches);
    s->batches = batches;
    trace_tensors x = {0};
    bool traced = train_trace_wants_tensors(t, s->step);
    bool ok = !traced || s->step > 1 || train_trace_adapter(t, &x, "before", err);
    ok = ok && gradients(t, s, batches, &x, traced, err);
    ok = ok && (!traced || train_trace_adapter(t, &x, "grad", err));
    ok = ok && update(t, s, events, err);
    ok = ok && (!traced || (train_trace_adapter(t, &x, "after", err) && train_trace_tensors_write(t, &x, s->step, &s->loss, err)));
    s->seconds = now_seconds() - start;
    if (ok) t->step = s->step, t->spoilt = false;
    ok = ok && train_trace_line(t, s, err);
    for (int i = 0; i < s->batch_count; i++) {
        free((void *)(uintptr_t)batches[i].items);
        batch_free(&batches[i]);
    }
    free(batches);
    train_trace_tensors_free(&x);
    return ok;
}

/* ---- saving ---- */

static char *without_ending(const char *path) {
    size_t length = strlen(path);
    bool suffix = length > 12 && strcmp(path + length - 12, ".safetensors") == 0;
    return memory_format("%.*s", (int)(suffix ? length - 12 : length), path);
}

static bool save_adapter(trainer *t, const char *path, const train_events *events, error *err) {
    char *stem = without_ending(path);
    const char *slash = strrchr(stem, '/');
    train_metadata metadata = train_metadata_make(t, slash ? slash + 1 : stem);
    adapter_save_options options = {.type = t->options.save_type, .metadata = metadata.pairs, .metadata_count = metadata.count};
    train_metadata arguments = train_network_arguments(t, &options.lycoris);
    options.arguments = arguments.pairs;
    options.argument_count = arguments.count;
    bool ok = adapter_save(t->adapter, path, &options, err);
    train_metadata_free(&metadata);
    train_metadata_free(&arguments);
    free(stem);
    if (ok && events->saved) events->saved(events->user, path);
    return ok;
}

static bool save_state(trainer *t, error *err) {
    if (!train_state_save(t, err)) return false;
    t->kept = t->step;
    t->kept_at = now_seconds();
    return true;
}

/* One of the numbered copies that --save-every-n-steps and --save-every-n-epochs ask for. */
static bool save_copy(trainer *t, const char *format, int64_t number, const train_events *events, error *err) {
    char count[24], *stem = without_ending(t->options.output);
    snprintf(count, sizeof count, format, number);
    char *path = memory_format("%s-%s.safetensors", stem, count);
    bool ok = save_adapter(t, path, events, err);
    free(path);
    free(stem);
    return ok;
}

/* Named as sd-scripts names them. */
static bool save_numbered(trainer *t, int64_t epochs_done, bool epoch_ended, const train_events *events, error *err) {
    const train_options *o = &t->options;
    bool by_step = o->save_every_steps > 0 && t->step % o->save_every_steps == 0 && t->step < t->steps;
    bool by_epoch = o->save_every_epochs > 0 && epoch_ended && epochs_done % o->save_every_epochs == 0 && t->step < t->steps;
    if (by_step && !save_copy(t, "step%08" PRId64, t->step, events, err)) return false;
    if (by_epoch && !save_copy(t, "%06" PRId64, epochs_done, events, err)) return false;
    double every = o->state_every_seconds;
    bool by_time = every > 0 && t->step < t->steps && now_seconds() - t->kept_at >= every;
    return !(by_step || by_epoch || by_time) || save_state(t, err);
}

static bool previews(trainer *t, int64_t epochs_done, bool epoch_ended, const train_events *events, error *err) {
    const train_options *o = &t->options;
    bool wanted = (o->preview_every_steps > 0 && t->step % o->preview_every_steps == 0) ||
                  (o->preview_every_epochs > 0 && epoch_ended && epochs_done % o->preview_every_epochs == 0) ||
                  (o->preview_at_end && t->step == t->steps);
    return !wanted || !events->preview || events->preview(events->user, t->step, epochs_done, err);
}

/* ---- the loop ---- */

enum { WINDOW = 100 };

typedef struct pace {
    double start;
    int64_t first; /* steps that were done before */
    float losses[WINDOW];
    int64_t count;
} pace;

static void report(const trainer *t, const traced_step *s, pace *p, const train_events *events) {
    p->losses[p->count++ % WINDOW] = s->loss;
    if (!events->stepped) return;
    int64_t n = p->count < WINDOW ? p->count : WINDOW;
    double sum = 0, elapsed = now_seconds() - p->start;
    for (int64_t i = 0; i < n; i++) sum += (double)p->losses[i];
    train_progress progress = {.step = t->step, .steps = t->steps, .epoch = s->epoch, .epochs = train_epochs(t), .loss = s->loss};
    progress.average = (float)(sum / (double)n);
    progress.grad_norm = s->grad_norm;
    progress.seconds = s->seconds;
    progress.seconds_left = elapsed / (double)(t->step - p->first) * (double)(t->steps - t->step);
    progress.unet_rate = (float)s->rates[CHECKPOINT_UNET];
    events->stepped(events->user, &progress);
}

static traced_step next_step(const trainer *t) {
    const train_options *o = &t->options;
    traced_step s = {.step = t->step + 1, .batch_count = (int)batches_per_step(t)};
    s.epoch = t->step * batches_per_step(t) / t->batches + 1;
    int64_t warmup = (int64_t)(o->warmup < 1 ? o->warmup * (double)t->steps : o->warmup);
    double factor = rate_factor(o->schedule, t->step, t->steps, warmup);
    s.rates[CHECKPOINT_UNET] = o->unet_rate * factor;
    s.rates[CHECKPOINT_TEXT_ENCODER] = o->text_rate * factor;
    return s;
}

static bool stop_wanted(const train_events *events) { return events->stop && events->stop(events->user); }

static bool loop(trainer *t, const train_events *events, bool *stopped, error *err) {
    pace p = {.start = now_seconds(), .first = t->step};
    t->kept_at = p.start;
    if (events->begun) events->begun(events->user, t->step, t->steps);
    while (t->step < t->steps && !(*stopped = stop_wanted(events))) {
        traced_step s = next_step(t);
        if (!train_step(t, &s, events, err)) return false;
        report(t, &s, &p, events);
        int64_t done = t->step * batches_per_step(t), epochs_done = done / t->batches;
        bool epoch_ended = epochs_done > (done - batches_per_step(t)) / t->batches;
        if (!save_numbered(t, epochs_done, epoch_ended, events, err) || !previews(t, epochs_done, epoch_ended, events, err)) return false;
    }
    return true;
}

/* Whether this is the step the training ends with already; said, since nothing else would be. */
static void note_end(const trainer *t, const train_events *events) {
    if (t->step < t->steps || !events->note) return;
    char text[160];
    snprintf(text, sizeof text, "%" PRId64 " of %" PRId64 " steps were done already; a larger --steps or --epochs goes on", t->step,
             t->steps);
    events->note(events->user, text);
}

/* All of it before the first step: a training that does not fit says so now. */
static bool reserve_memory(trainer *t, error *err) {
    if (!t->arena_bytes && !train_measure_arena(t, &t->arena_bytes, err)) return false;
    return learner_reserve(t->learner, t->arena_bytes, err);
}

/* After a failure: saves what was trained since the last save, if it is still there, and adds to the error what is kept. */
static void keep_what_is_left(trainer *t, const train_events *events, error *err) {
    const gpu *g = t->pipeline->device->gpu;
    bool readable = !t->spoilt && (!g || gpu_usable(g)), saved = false;
    error why = *err, second;
    if (t->step > t->kept && readable) saved = save_adapter(t, t->options.output, events, &second) && save_state(t, &second);
    if (saved)
        error_set(err, "%s. Adapter and state of step %" PRId64 " were saved; the same command with --resume goes on from there", why.text,
                  t->step);
    else if (t->kept)
        error_set(err, "%s. The state of step %" PRId64 " is kept; the same command with --resume goes on from there", why.text, t->kept);
    else if (t->step)
        error_set(err, "%s. %" PRId64 " step%s lost; --save-every-n-steps N saves in between", why.text, t->step,
                  t->step == 1 ? " done is" : "s done are");
}

train_result trainer_run(trainer *t, const train_events *events, error *err) {
    bool stopped = false, ok = true;
    note_end(t, events);
    if (t->step < t->steps) {
        train_remove_orphans(t->options.output);
        ok = train_encode_pictures(t, events, &stopped, err);
        if (ok && !stopped)
            ok = train_encode_captions(t, events, err) && reserve_memory(t, err) && train_trace_open(t, err) &&
                 loop(t, events, &stopped, err);
    }
    if (!ok) {
        keep_what_is_left(t, events, err);
        return TRAIN_FAILED;
    }
    /* Before the first step there is nothing to keep, and perhaps an older result to lose. */
    if (stopped && t->step == 0) return TRAIN_STOPPED_EARLY;
    if (!save_adapter(t, t->options.output, events, err) || !save_state(t, err)) return TRAIN_FAILED;
    return stopped ? TRAIN_STOPPED : TRAIN_DONE;
}
