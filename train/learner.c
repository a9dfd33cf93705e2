#include "train/learner.h"

#include "base/memory.h"
#include "ops/ops.h"
#include "train/gates.h"
#include "unet/unet.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* fp16: the loss is scaled so that small gradients survive. Doubled after so many good updates, halved after a bad one. */
static const float FIRST_LOSS_SCALE = 4096.0f, LEAST_LOSS_SCALE = 1.0f, MOST_LOSS_SCALE = 65536.0f;
enum { GOOD_UPDATES = 500 };

typedef struct shape {
    int n, h, w, tokens;
    bool text; /* the text encoder runs inside */
} shape;

/* The recorded gradient tape of one batch shape. */
typedef struct step_plan {
    shape shape;
    plan *plan;
    tensor *noisy, *time, *text, *target, *seed, *loss;
    adapter_step step; /* what dropouts and the like read */
} step_plan;

/* Tensors with one learning rate: that of a part of the model times a factor. */
typedef struct rate_group {
    checkpoint_part part;
    float factor;
    tensor *control; /* the optimizer's settings */
} rate_group;

struct learner {
    pipeline *pipeline;
    adapter *adapter;
    learner_options options;
    noise_schedule schedule;
    bool trains_text;
    int count;
    tensor_pool *pools[2]; /* of m and v: each side by side, for the optimizer */
    tensor **m, **v;
    shared_arena *arena; /* of all gradient plans */
    step_plan *plans;
    int plan_count;
    plan *update;
    rate_group *groups;
    int group_count;
    int *group_of; /* by tensor */
    tensor *norm;
    train_gates *gates; /* NULL: every update moves everything */
    int64_t steps;
    float loss_scale;
    int good_steps;
};

learner_options learner_default_options(void) {
    return (learner_options){
        .clip_skip = 1, .accumulation = 1, .max_grad_norm = 1.0f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .weight_decay = 0.01f};
}

static checkpoint_part part_of(const learner *l, int index) {
    const adapter_module *module;
    adapter_tensor_at(l->adapter, index, &module);
    return module->info->part;
}

static tensor *value_of(const learner *l, int index) { return adapter_tensor_at(l->adapter, index, NULL)->value; }

static bool same_float(float a, float b) { return !(a < b) && !(a > b); }

/* Neighbouring tensors of a group are updated together, so there are no more groups than different rates. */
static void make_groups(learner *l) {
    l->group_of = memory_new((size_t)l->count, sizeof *l->group_of);
    for (int i = 0, g; i < l->count; i++) {
        checkpoint_part part = part_of(l, i);
        float factor = adapter_tensor_at(l->adapter, i, NULL)->rate;
        for (g = 0; g < l->group_count; g++)
            if (l->groups[g].part == part && same_float(l->groups[g].factor, factor)) break;
        l->group_of[i] = g;
        if (g < l->group_count) continue;
        l->groups = memory_grow(l->groups, (size_t)l->group_count + 1, sizeof *l->groups);
        l->groups[l->group_count++] = (rate_group){.part = part, .factor = factor};
    }
}

/* The update tape: norm of all gradients, then AdamW on every tensor. */
static bool record_update(learner *l, error *err) {
    tape *t = tape_create(l->pipeline->device);
    for (int i = 0; i < l->group_count; i++) l->groups[i].control = tape_input(t, "optimizer settings", DTYPE_F32, 1, (int64_t[]){8});
    tensor **grads = memory_new((size_t)l->count, sizeof *grads);
    for (int i = 0; i < l->count; i++) grads[i] = value_of(l, i)->grad;
    l->norm = op_grad_norm(t, grads, l->count, l->groups[0].control);
    l->gates = train_gates_create(l->adapter, t);
    for (int i = 0; i < l->count; i++) {
        const adapter_module *m;
        const adapter_tensor *x = adapter_tensor_at(l->adapter, i, &m);
        update_gate gate = l->gates ? adapter_gate(l->adapter, m, x, train_gates_input(l->gates)) : (update_gate){0};
        op_adamw(t, x->value, grads[i], l->m[i], l->v[i], l->groups[l->group_of[i]].control, l->norm, l->options.max_grad_norm,
                 l->gates ? &gate : NULL);
    }
    free(grads);
    for (int i = 0; i < l->adapter->module_count; i++) adapter_limit_norm(l->adapter, &l->adapter->modules[i], t);
    l->update = plan_create(t, err);
    return l->update != NULL;
}

static bool make_state(learner *l, error *err) {
    for (int i = 0; i < 2; i++) l->pools[i] = tensor_pool_create(l->pipeline->device);
    l->m = memory_new((size_t)l->count, sizeof(tensor *));
    l->v = memory_new((size_t)l->count, sizeof(tensor *));
    for (int i = 0; i < l->count; i++) {
        const tensor *x = value_of(l, i);
        if (!(l->m[i] = tensor_pool_parameter(l->pools[0], x->name, x->rank, x->dim, err)) ||
            !(l->v[i] = tensor_pool_parameter(l->pools[1], x->name, x->rank, x->dim, err)))
            return false;
        l->trains_text |= part_of(l, i) == CHECKPOINT_TEXT_ENCODER;
    }
    return true;
}

learner *learner_create(pipeline *p, adapter *a, const learner_options *options, error *err) {
    learner *l = memory_new(1, sizeof *l);
    l->pipeline = p;
    l->adapter = a;
    l->options = *options;
    l->count = adapter_tensor_count(a);
    l->loss_scale = p->device->activation == DTYPE_F16 ? FIRST_LOSS_SCALE : 1.0f;
    noise_schedule_init(&l->schedule);
    bool ok = l->count > 0 || error_set(err, "there is nothing to train: the adapter has no tensors");
    if (ok) make_groups(l);
    if (ok && make_state(l, err) && record_update(l, err)) return l;
    learner_free(l);
    return NULL;
}

static void drop_plans(learner *l) {
    for (int i = 0; i < l->plan_count; i++) {
        plan_free(l->plans[i].plan);
        adapter_step_free(&l->plans[i].step);
    }
    l->plan_count = 0;
}

void learner_set_checkpoint(learner *l, bool recompute) {
    if (l->options.checkpoint != recompute) drop_plans(l);
    l->options.checkpoint = recompute;
}

static void drop_arena(learner *l) {
    drop_plans(l);
    if (l->arena) pipeline_use_arena(l->pipeline, NULL);
    arena_free(l->arena);
    l->arena = NULL;
}

void learner_free(learner *l) {
    if (!l) return;
    drop_arena(l);
    plan_free(l->update);
    train_gates_free(l->gates);
    for (int i = 0; i < 2; i++) tensor_pool_free(l->pools[i]);
    free(l->plans);
    free(l->groups);
    free(l->group_of);
    free(l->m);
    free(l->v);
    free(l);
}

bool learner_trains_text(const learner *l) { return l->trains_text; }

/* ---- gradients ---- */

/* Appends forward pass, loss and backward pass for a batch shape. */
static tape *record_step(learner *l, const shape *s, bool recompute, step_plan *made) {
    pipeline *p = l->pipeline;
    tape *t = tape_create(p->device);
    const int64_t image[] = {s->n, s->h, s->w, p->model.config.vae_latent_channels};
    *made = (step_plan){.shape = *s};
    made->noisy = tape_input(t, "noisy latents", DTYPE_COUNT, 4, image);
    made->target = tape_input(t, "noise", DTYPE_F32, 4, image);
    made->time = tape_input(t, "timestep embedding", DTYPE_COUNT, 2, (int64_t[]){s->n, unet_time_channels(&p->model)});
    made->text = tape_input(t, "text", DTYPE_COUNT, 3, (int64_t[]){s->n, s->tokens, p->text.width});
    made->seed = tape_input(t, "loss gradient", DTYPE_F32, 1, (int64_t[]){1});
    tensor *context = made->text;
    adapter_step_begin(l->adapter, t, &made->step);
    if (s->text) {
        layer_scope text = pipeline_scope(p, t, CHECKPOINT_TEXT_ENCODER);
        context = text_encoder_forward(&text, made->text, l->options.clip_skip);
    }
    layer_scope unet = pipeline_scope(p, t, CHECKPOINT_UNET);
    made->loss = op_mse(t, unet_forward(&unet, made->noisy, made->time, context), made->target);
    tape_keep(made->loss);
    adapter_step_end(l->adapter);
    tape_backward(t, made->loss, made->seed, recompute);
    adapter_step_gate_gradients(&made->step, t);
    return t;
}

static bool same_shape(const shape *a, const shape *b) {
    return a->n == b->n && a->h == b->h && a->w == b->w && a->tokens == b->tokens && a->text == b->text;
}

bool learner_reserve(learner *l, size_t bytes, error *err) {
    if (l->arena && arena_bytes(l->arena) >= bytes) return true;
    drop_arena(l);
    l->arena = arena_create(l->pipeline->device, bytes, err);
    /* Nothing in it outlives a step, so what the pipeline does between two may use it. */
    pipeline_use_arena(l->pipeline, l->arena);
    return l->arena != NULL;
}

static step_plan *prepare(learner *l, const shape *s, error *err) {
    for (int i = 0; i < l->plan_count; i++)
        if (same_shape(&l->plans[i].shape, s)) return &l->plans[i];
    step_plan made;
    tape *t = record_step(l, s, l->options.checkpoint, &made);
    plan_size size;
    bool ok = plan_measure(t, &size, err) && learner_reserve(l, size.arena, err);
    if (!ok) tape_free(t);
    if (!ok || !(made.plan = plan_create_in(t, l->arena, err))) {
        adapter_step_free(&made.step);
        return NULL;
    }
    l->plans = memory_grow(l->plans, (size_t)l->plan_count + 1, sizeof *l->plans);
    l->plans[l->plan_count] = made;
    return &l->plans[l->plan_count++];
}

/* x_t = sqrt(alphas_cumprod) x_0 + sqrt(1 - alphas_cumprod) noise, turned to [n, h, w, 4] together with the noise. */
static bool write_images(learner *l, const step_plan *s, const learner_batch *b, error *err) {
    int channels = (int)s->noisy->dim[3];
    size_t image = (size_t)channels * (size_t)b->h * (size_t)b->w, count = (size_t)b->n * image;
    float *mixed = memory_new(count, sizeof *mixed), *turned = memory_new(count, sizeof *turned);
    for (int i = 0; i < b->n; i++) {
        float keep, add;
        noise_schedule_add_noise(&l->schedule, b->timesteps[i], &keep, &add);
        for (size_t k = (size_t)i * image; k < (size_t)(i + 1) * image; k++) mixed[k] = keep * b->latents[k] + add * b->noise[k];
    }
    device *d = l->pipeline->device;
    pipeline_channels_last(mixed, b->n, channels, (int64_t)b->h * b->w, turned);
    bool ok = tensor_write(d, s->noisy, turned, err);
    pipeline_channels_last(b->noise, b->n, channels, (int64_t)b->h * b->w, turned);
    ok = ok && tensor_write(d, s->target, turned, err);
    free(mixed);
    free(turned);
    return ok;
}

static bool write_conditions(learner *l, const step_plan *s, const learner_batch *b, error *err) {
    device *d = l->pipeline->device;
    float *time = memory_new((size_t)tensor_count(s->time), sizeof *time), *text = NULL,
          *timesteps = memory_new((size_t)b->n, sizeof *timesteps);
    for (int i = 0; i < b->n; i++) timesteps[i] = (float)b->timesteps[i];
    unet_embed_timesteps(timesteps, b->n, tensor_columns(s->time), time);
    bool ok = tensor_write(d, s->time, time, err);
    const float *states = b->context;
    if (ok && b->ids) {
        states = text = memory_new((size_t)tensor_count(s->text), sizeof *text);
        ok = text_encoder_embed(&l->pipeline->model, b->ids, b->n, text, err);
    }
    const float seed = l->loss_scale / (float)l->options.accumulation;
    ok = ok && tensor_write(d, s->text, states, err) && tensor_write(d, s->seed, &seed, err);
    free(time);
    free(timesteps);
    free(text);
    return ok;
}

bool learner_accumulate(learner *l, const learner_batch *batch, float *loss, error *err) {
    const shape s = {batch->n, batch->h, batch->w, batch->ids ? (int)l->pipeline->text.positions : batch->tokens, batch->ids != NULL};
    step_plan *step = prepare(l, &s, err);
    if (!step || !write_images(l, step, batch, err) || !write_conditions(l, step, batch, err)) return false;
    if (!adapter_step_write(&step->step, l->steps, batch->number, err)) return false;
    return plan_run(step->plan, err) && tensor_read(l->pipeline->device, step->loss, loss, err);
}

/* ---- update ---- */

static void adjust_loss_scale(learner *l, bool applied) {
    if (l->pipeline->device->activation != DTYPE_F16) return;
    if (!applied) {
        l->loss_scale = fmaxf(l->loss_scale / 2, LEAST_LOSS_SCALE);
        l->good_steps = 0;
    } else if (++l->good_steps == GOOD_UPDATES) {
        l->loss_scale = fminf(l->loss_scale * 2, MOST_LOSS_SCALE);
        l->good_steps = 0;
    }
}

bool learner_update(learner *l, const float rates[CHECKPOINT_PARTS], float *grad_norm, bool *applied, error *err) {
    const learner_options *o = &l->options;
    double step = (double)(l->steps + 1);
    for (int i = 0; i < l->group_count; i++) {
        const rate_group *g = &l->groups[i];
        const float control[8] = {rates[g->part] * g->factor,
                                  o->beta1,
                                  o->beta2,
                                  o->eps,
                                  o->weight_decay,
                                  (float)(1.0 - pow((double)o->beta1, step)),
                                  (float)(1.0 - pow((double)o->beta2, step)),
                                  1.0f / l->loss_scale};
        if (!tensor_write(l->pipeline->device, g->control, control, err)) return false;
    }
    if (l->gates && !train_gates_write(l->gates, l->steps, o->beta1, o->beta2, err)) return false;
    if (!plan_run(l->update, err) || !tensor_read(l->pipeline->device, l->norm, grad_norm, err)) return false;
    *applied = isfinite(*grad_norm);
    if (*applied && l->gates) train_gates_count(l->gates, l->steps);
    if (*applied) l->steps++;
    adjust_loss_scale(l, *applied);
    return true;
}

/* ---- host copies ---- */

static bool read_turned(learner *l, const adapter_tensor *a, const tensor *x, float *out, error *err) {
    float *raw = memory_new((size_t)tensor_count(x), sizeof *raw);
    bool ok = tensor_read(l->pipeline->device, x, raw, err);
    if (ok) adapter_tensor_to_file(a, raw, out);
    free(raw);
    return ok;
}

static bool write_turned(learner *l, const adapter_tensor *a, tensor *x, const float *in, error *err) {
    float *raw = memory_new((size_t)tensor_count(x), sizeof *raw);
    adapter_tensor_from_file(a, in, raw);
    bool ok = tensor_write(l->pipeline->device, x, raw, err);
    free(raw);
    return ok;
}

bool learner_read_value(learner *l, int index, float *out, error *err) {
    const adapter_tensor *a = adapter_tensor_at(l->adapter, index, NULL);
    return read_turned(l, a, a->value, out, err);
}

bool learner_read_grad(learner *l, int index, float *out, error *err) {
    const adapter_tensor *a = adapter_tensor_at(l->adapter, index, NULL);
    if (!read_turned(l, a, a->value->grad, out, err)) return false;
    for (int64_t i = 0; i < adapter_tensor_elements(a); i++) out[i] /= l->loss_scale;
    return true;
}

bool learner_read_moments(learner *l, int index, float *m, float *v, error *err) {
    const adapter_tensor *a = adapter_tensor_at(l->adapter, index, NULL);
    return read_turned(l, a, l->m[index], m, err) && read_turned(l, a, l->v[index], v, err);
}

bool learner_write_state(learner *l, int index, const float *value, const float *m, const float *v, error *err) {
    const adapter_tensor *a = adapter_tensor_at(l->adapter, index, NULL);
    return write_turned(l, a, a->value, value, err) && write_turned(l, a, l->m[index], m, err) && write_turned(l, a, l->v[index], v, err);
}

int64_t learner_steps(const learner *l) { return l->steps; }

void learner_set_steps(learner *l, int64_t steps) {
    l->steps = steps;
    if (l->gates) train_gates_recount(l->gates, steps);
}

float learner_loss_scale(const learner *l) { return l->loss_scale; }
int learner_good_steps(const learner *l) { return l->good_steps; }

void learner_set_loss_scale(learner *l, float scale, int good_steps) {
    l->loss_scale = scale;
    l->good_steps = good_steps;
}

bool learner_measure(learner *l, int n, int h, int w, int tokens, bool text_inside, bool recompute, plan_size *size, error *err) {
    step_plan made;
    tape *t = record_step(l, &(shape){n, h, w, tokens, text_inside}, recompute, &made);
    bool ok = plan_measure(t, size, err);
    tape_free(t);
    adapter_step_free(&made.step);
    return ok;
}

size_t learner_update_bytes(const learner *l) { return plan_arena_bytes(l->update); }

void learner_count(const learner *l, gpu_counts *sum) {
    for (int i = 0; i < l->plan_count; i++) plan_count(l->plans[i].plan, sum);
    plan_count(l->update, sum);
}

void learner_profile(const learner *l, void (*report)(void *user, const char *op, int records, double seconds, double flops), void *user) {
    for (int i = 0; i < l->plan_count; i++) plan_profile(l->plans[i].plan, report, user);
    plan_profile(l->update, report, user);
}
