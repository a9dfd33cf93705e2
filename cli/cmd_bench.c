/* vulora bench: times one part of the model on a device, on random input. A part is a row of the table. */
#include "base/memory.h"
#include "base/random.h"
#include "cli/bench_limit.h"
#include "cli/commands.h"
#include "cli/session.h"
#include "cli/terminal.h"
#include "cli/train_setup.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

typedef struct bench {
    const options *options;
    session session;
    adapter *adapter;
    learner *learner;
    int n, width, height, h, w; /* batch; pixels; latents */
    float *image, *latents, *noise, *context, *out, *second;
    float *timesteps;
    int *steps;
    int32_t *ids;
    bench_limit limit;
} bench;

typedef struct bench_part {
    const char *name;
    checkpoint_part part;
    bool (*run)(bench *b, error *err);
} bench_part;

/* ---- the parts ---- */

static bool run_unet(bench *b, error *err) {
    return pipeline_predict(b->session.pipeline, b->latents, b->n, b->h, b->w, b->timesteps, b->context, TOKENIZER_LENGTH, b->out, err);
}

static bool run_text(bench *b, error *err) { return pipeline_encode_text(b->session.pipeline, b->ids, b->n, 1, b->context, err); }

static bool run_vae_encode(bench *b, error *err) {
    return pipeline_vae_encode(b->session.pipeline, b->image, b->n, b->height, b->width, b->out, b->second, err);
}

static bool run_vae_decode(bench *b, error *err) {
    return pipeline_vae_decode(b->session.pipeline, b->latents, b->n, b->h, b->w, b->image, err);
}

static bool run_train_step(bench *b, error *err) {
    bool text = learner_trains_text(b->learner), applied;
    float loss, norm, rates[CHECKPOINT_PARTS];
    learner_batch batch = {.n = b->n,
                           .h = b->h,
                           .w = b->w,
                           .latents = b->latents,
                           .noise = b->noise,
                           .timesteps = b->steps,
                           .ids = text ? b->ids : NULL,
                           .context = text ? NULL : b->context,
                           .tokens = TOKENIZER_LENGTH};
    double rate = isnan(b->options->lr) ? session_native_rate(&b->session) : b->options->lr;
    for (int i = 0; i < CHECKPOINT_PARTS; i++) rates[i] = (float)rate;
    return learner_accumulate(b->learner, &batch, &loss, err) && learner_update(b->learner, rates, &norm, &applied, err);
}

static const bench_part parts[] = {{"unet", CHECKPOINT_UNET, run_unet},
                                   {"train-step", CHECKPOINT_UNET, run_train_step},
                                   {"text-encoder", CHECKPOINT_TEXT_ENCODER, run_text},
                                   {"vae-encode", CHECKPOINT_VAE, run_vae_encode},
                                   {"vae-decode", CHECKPOINT_VAE, run_vae_decode}};

static const bench_part *find_part(const char *name) {
    size_t i = 0;
    while (strcmp(parts[i].name, name)) i++;
    return &parts[i];
}

/* ---- input ---- */

static float *random_block(size_t count, uint64_t stream) {
    float *block = memory_new(count, sizeof *block);
    random_normal_fill(1, RANDOM_STREAM_NOISE, stream, block, count);
    return block;
}

static void make_input(bench *b) {
    const pipeline *p = b->session.pipeline;
    size_t n = (size_t)b->n, pixels = n * (size_t)b->width * (size_t)b->height,
           latents = pixels / 64 * (size_t)p->model.config.vae_latent_channels, states = n * TOKENIZER_LENGTH * (size_t)p->text.width;
    b->image = random_block(pixels * 3, 0);
    for (size_t i = 0; i < pixels * 3; i++) b->image[i] = b->image[i] > 1 ? 1 : b->image[i] < -1 ? -1 : b->image[i];
    b->latents = random_block(latents, 1);
    b->noise = random_block(latents, 2);
    b->context = random_block(states, 3);
    b->out = memory_new(latents, sizeof *b->out);
    b->second = memory_new(latents, sizeof *b->second);
    b->timesteps = memory_new(n, sizeof *b->timesteps);
    b->steps = memory_new(n, sizeof *b->steps);
    b->ids = memory_new(n * TOKENIZER_LENGTH, sizeof *b->ids);
    for (size_t i = 0; i < n; i++) b->timesteps[i] = (float)(b->steps[i] = (int)(999 * (i + 1) / (n + 1)));
    for (size_t i = 0; i < n * TOKENIZER_LENGTH; i++) b->ids[i] = (int32_t)(1000 + i * 37 % 20000) % (int32_t)p->text.vocabulary;
}

static void free_input(bench *b) {
    float *blocks[] = {b->image, b->latents, b->noise, b->context, b->out, b->second, b->timesteps};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) free(blocks[i]);
    free(b->steps);
    free(b->ids);
}

static bool make_learner(bench *b, error *err) {
    const options *o = b->options;
    pipeline *p = b->session.pipeline;
    adapter_options wanted = train_adapter_options(o);
    learner_options settings = train_learner_options(o);
    b->adapter = adapter_create(&wanted, p->modules, b->session.device, err);
    if (!b->adapter) return false;
    adapter_stack_add(p->adapters, b->adapter, 1, 1);
    pipeline_adapters_changed(p);
    b->learner = learner_create(p, b->adapter, &settings, err);
    return b->learner != NULL;
}

/* ---- results ---- */

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(const double *runs, int64_t count) {
    double *sorted = memory_new((size_t)count, sizeof *sorted);
    memcpy(sorted, runs, (size_t)count * sizeof *sorted);
    qsort(sorted, (size_t)count, sizeof *sorted, by_size);
    double middle = count % 2 ? sorted[count / 2] : (sorted[count / 2 - 1] + sorted[count / 2]) / 2;
    free(sorted);
    return middle;
}

typedef struct op_time {
    const char *name;
    int records;
    double seconds, flops;
} op_time;

typedef struct op_times {
    op_time item[128];
    int count;
    double total;
} op_times;

static void add_op(void *user, const char *name, int records, double seconds, double flops) {
    op_times *t = user;
    int i = 0;
    while (i < t->count && strcmp(t->item[i].name, name)) i++;
    if (i == 128) return;
    if (i == t->count) t->item[t->count++] = (op_time){name, 0, 0, 0};
    t->item[i].records += records;
    t->item[i].seconds += seconds;
    t->item[i].flops += flops;
    t->total += seconds;
}

static int by_time(const void *a, const void *b) {
    const op_time *x = a, *y = b;
    return (x->seconds < y->seconds) - (x->seconds > y->seconds);
}

static op_times collect_ops(const bench *b) {
    op_times times = {.count = 0};
    if (b->learner)
        learner_profile(b->learner, add_op, &times);
    else
        pipeline_profile(b->session.pipeline, find_part(b->options->part)->part, add_op, &times);
    qsort(times.item, (size_t)times.count, sizeof *times.item, by_time);
    return times;
}

/* Operations of one run; 0 where the device does not count them. */
static double flops_of_a_run(const bench *b, const op_times *times) {
    double all = 0;
    for (int i = 0; i < times->count; i++) all += times->item[i].flops;
    return all / (double)(b->options->repeats + 1);
}

/* Shares of the time by operation, warm-up included. */
static void print_ops(const bench *b, const op_times *times) {
    for (int i = 0; i < times->count && times->total > 0; i++) {
        const op_time *o = &times->item[i];
        printf("  %-28s %5.1f %%  %5lld calls", o->name, 100 * o->seconds / times->total,
               (long long)(o->records / (b->options->repeats + 1)));
        if (o->flops > 0) printf("  %7.1f GFLOP/s", 1e-9 * o->flops / o->seconds);
        puts("");
    }
}

/* What a run sends to a Vulkan device. */
static gpu_counts collect_counts(const bench *b) {
    gpu_counts counts = {0};
    if (b->learner)
        learner_count(b->learner, &counts);
    else
        pipeline_count(b->session.pipeline, find_part(b->options->part)->part, &counts);
    return counts;
}

static void print_json(const bench *b, const double *runs, int64_t count, json_int_t rss) {
    const device *d = b->session.device;
    op_times times = collect_ops(b);
    json_t *list = json_array(), *root;
    for (int64_t i = 0; i < count; i++) json_array_append_new(list, json_real(runs[i]));
    root = json_pack("{s:s, s:s, s:s, s:i, s:[i,i], s:i, s:o, s:f, s:I, s:I, s:f, s:{s:f, s:f}}", "part", b->options->part, "device",
                     d->name, "precision", device_precision(d), "threads", d->threads, "resolution", b->width, b->height, "batch_size",
                     b->n, "runs_s", list, "median_s", median(runs, count), "peak_rss_bytes", rss, "device_bytes",
                     (json_int_t)(d->gpu ? d->peak_bytes : 0), "flops_per_run", flops_of_a_run(b, &times), "limits",
                     "matrix_product_flops_per_s", b->limit.flops, "memory_bytes_per_s", b->limit.bytes);
    if (root && b->adapter) json_object_set_new(root, "parameters", json_integer((json_int_t)adapter_parameters(b->adapter)));
    if (root && d->gpu) {
        gpu_counts counts = collect_counts(b);
        json_object_set_new(root, "dispatches", json_integer(counts.dispatches));
        json_object_set_new(root, "barriers", json_integer(counts.barriers));
        json_object_set_new(root, "submissions", json_integer(counts.submissions));
    }
    char *text = root ? json_dumps(root, 0) : NULL;
    if (text) puts(text);
    free(text);
    json_decref(root);
}

static void print_text(const bench *b, const double *runs, int64_t count, uint64_t rss) {
    char a[24], c[24];
    const device *d = b->session.device;
    op_times times = collect_ops(b);
    double flops = flops_of_a_run(b, &times), middle = median(runs, count);
    printf("%s at %dx%d, batch %d, %s %s: median %.4g s of %lld runs", b->options->part, b->width, b->height, b->n, d->name,
           device_precision(d), middle, (long long)count);
    printf("; peak memory %s%s%s\n", terminal_bytes(rss, a), d->gpu ? ", on the device " : "",
           d->gpu ? terminal_bytes(d->peak_bytes, c) : "");
    if (d->gpu) {
        gpu_counts counts = collect_counts(b);
        printf("a run is %d dispatches with %d barriers in %d submissions\n", counts.dispatches, counts.barriers, counts.submissions);
    }
    if (flops > 0) printf("%.1f GFLOP in a run: %.1f GFLOP/s\n", 1e-9 * flops, 1e-9 * flops / middle);
    printf("the device's own limits, measured: matrix product %.1f GFLOP/s, memory %.1f GB/s\n", 1e-9 * b->limit.flops,
           1e-9 * b->limit.bytes);
    print_ops(b, &times);
}

static bool measure(bench *b, double *runs, error *err) {
    const bench_part *part = find_part(b->options->part);
    progress p;
    progress_begin(&p, "run", 0, b->options->repeats);
    bool ok = part->run(b, err);
    for (int64_t i = 0; ok && i < b->options->repeats; i++) {
        double start = terminal_clock();
        ok = part->run(b, err);
        runs[i] = terminal_clock() - start;
        progress_update(&p, i + 1, NULL);
    }
    progress_end(&p);
    return ok;
}

int cmd_bench(const options *o) {
    error err = {""};
    bench b = {.options = o, .n = (int)o->batch_size};
    if (!o->model) {
        error_set(&err, "--model is missing: name a Stable Diffusion 1.5 checkpoint (.safetensors), a diffusers folder, or demo");
        return terminal_refuse(&err);
    }
    double *runs = memory_new((size_t)o->repeats, sizeof *runs);
    bool ok = session_open(&b.session, o, &err);
    if (ok) {
        options_size size = options_given(o, "resolution") ? o->resolution : session_native_size(&b.session);
        b.width = size.width;
        b.height = size.height;
        b.h = size.height / 8;
        b.w = size.width / 8;
        make_input(&b);
        ok = (strcmp(o->part, "train-step") || make_learner(&b, &err)) && measure(&b, runs, &err);
    }
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage); /* before the limits are measured, which takes memory of its own */
    size_t device_peak = ok ? b.session.device->peak_bytes : 0;
    ok = ok && bench_limit_measure(b.session.device, &b.limit, &err);
    if (ok) {
        b.session.device->peak_bytes = device_peak;
        if (o->json)
            print_json(&b, runs, o->repeats, (json_int_t)usage.ru_maxrss * 1024);
        else
            print_text(&b, runs, o->repeats, (uint64_t)usage.ru_maxrss * 1024);
    }
    learner_free(b.learner);
    free_input(&b);
    session_close(&b.session);
    free(runs);
    return ok ? EXIT_DONE : terminal_fail(&err);
}
