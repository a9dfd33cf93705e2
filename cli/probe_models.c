/* probe: the models' forward passes, and the gradient of a training step. */
#include "base/memory.h"
#include "cli/probe.h"
#include "cli/terminal.h"
#include "train/learner.h"

#include <stdlib.h>
#include <string.h>

bool probe_text_encoder(probe *p, error *err) {
    pipeline *pl = p->session.pipeline;
    int64_t ids_shape[2] = {-1, pl->text.positions}, width = pl->text.width;
    int32_t *ids;
    if (!probe_read_ints(p, "input_ids", "[n, 77]", 2, ids_shape, 0, (int32_t)pl->text.vocabulary - 1, &ids, err)) return false;
    int64_t n = ids_shape[0], states[3] = {n, ids_shape[1], width}, vector[2] = {n, width};
    float *last = probe_new(p, n, ids_shape[1], width, 1, err), *penultimate = last ? probe_new(p, n, ids_shape[1], width, 1, err) : NULL,
          *pooled = penultimate ? probe_new(p, n, width, 1, 1, err) : NULL;
    return pooled && pipeline_encode_text_all(pl, ids, (int)n, last, penultimate, pooled, err) &&
           probe_result(p, "last_hidden_state", 3, states, last, err) && probe_result(p, "penultimate", 3, states, penultimate, err) &&
           probe_result(p, "pooled", 2, vector, pooled, err);
}

bool probe_unet(probe *p, error *err) {
    pipeline *pl = p->session.pipeline;
    int64_t shape[4] = {-1, pl->model.config.vae_latent_channels, -1, -1};
    float *sample, *timesteps, *context;
    if (!probe_read(p, "sample", "[n, 4, h, w]", 4, shape, &sample, err)) return false;
    int64_t times[1] = {shape[0]}, states[3] = {shape[0], -1, pl->text.width};
    if (!probe_read(p, "timestep", "[n]", 1, times, &timesteps, err) ||
        !probe_read(p, "encoder_hidden_states", "[n, t, d]", 3, states, &context, err))
        return false;
    float *out = probe_new(p, shape[0], shape[1], shape[2], shape[3], err);
    return out && pipeline_predict(pl, sample, (int)shape[0], (int)shape[2], (int)shape[3], timesteps, context, (int)states[1], out, err) &&
           probe_result(p, "noise_pred", 4, shape, out, err);
}

bool probe_vae_encode(probe *p, error *err) {
    pipeline *pl = p->session.pipeline;
    int64_t shape[4] = {-1, 3, -1, -1};
    float *image;
    if (!probe_read(p, "image", "[n, 3, H, W]", 4, shape, &image, err)) return false;
    if (shape[2] % 8 || shape[3] % 8)
        return error_set(err, "%s: tensor image is %lld pixels high and %lld wide; both must be multiples of 8", p->in.path,
                         (long long)shape[2], (long long)shape[3]);
    int64_t latents[4] = {shape[0], pl->model.config.vae_latent_channels, shape[2] / 8, shape[3] / 8};
    float *mean = probe_new(p, latents[0], latents[1], latents[2], latents[3], err),
          *logvar = mean ? probe_new(p, latents[0], latents[1], latents[2], latents[3], err) : NULL;
    return logvar && pipeline_vae_encode(pl, image, (int)shape[0], (int)shape[2], (int)shape[3], mean, logvar, err) &&
           probe_result(p, "mean", 4, latents, mean, err) && probe_result(p, "logvar", 4, latents, logvar, err);
}

bool probe_vae_decode(probe *p, error *err) {
    pipeline *pl = p->session.pipeline;
    int64_t shape[4] = {-1, pl->model.config.vae_latent_channels, -1, -1};
    float *latents;
    if (!probe_read(p, "latents", "[n, 4, h, w]", 4, shape, &latents, err)) return false;
    int64_t image[4] = {shape[0], 3, 8 * shape[2], 8 * shape[3]};
    float *out = probe_new(p, image[0], image[1], image[2], image[3], err);
    return out && pipeline_vae_decode(pl, latents, (int)shape[0], (int)shape[2], (int)shape[3], out, err) &&
           probe_result(p, "image", 4, image, out, err);
}

/* ---- train-grad ---- */

static bool read_batch(probe *p, learner_batch *batch, error *err) {
    pipeline *pl = p->session.pipeline;
    int64_t shape[4] = {-1, pl->model.config.vae_latent_channels, -1, -1};
    float *latents, *noise, *context;
    int32_t *timesteps, *ids;
    if (!probe_read(p, "latents", "[n, 4, h, w]", 4, shape, &latents, err) || !probe_read(p, "noise", "as latents", 4, shape, &noise, err))
        return false;
    int64_t times[1] = {shape[0]}, states[3] = {shape[0], -1, pl->text.width}, tokens[2] = {shape[0], pl->text.positions};
    if (!probe_read_ints(p, "timestep", "[n]", 1, times, 0, SCHEDULE_TIMESTEPS - 1, &timesteps, err)) return false;
    *batch = (learner_batch){
        .n = (int)shape[0], .h = (int)shape[2], .w = (int)shape[3], .latents = latents, .noise = noise, .timesteps = timesteps};
    bool has_states = safetensors_find(&p->in, "encoder_hidden_states") != NULL, has_ids = safetensors_find(&p->in, "input_ids") != NULL;
    if (has_states == has_ids)
        return error_set(err, "%s: has %s encoder_hidden_states %s input_ids; train-grad takes exactly one of them", p->in.path,
                         has_ids ? "both" : "neither", has_ids ? "and" : "nor");
    if (has_ids) {
        if (!probe_read_ints(p, "input_ids", "[n, 77]", 2, tokens, 0, (int32_t)pl->text.vocabulary - 1, &ids, err)) return false;
        batch->ids = ids;
        return true;
    }
    if (!probe_read(p, "encoder_hidden_states", "[n, t, d]", 3, states, &context, err)) return false;
    batch->context = context;
    batch->tokens = (int)states[1];
    return true;
}

/* The gradients lie in one block, tensor after tensor. */
static bool write_grads(probe *p, learner *l, adapter *a, error *err) {
    int64_t total = 0;
    for (int i = 0; i < adapter_tensor_count(a); i++) total += adapter_tensor_elements(adapter_tensor_at(a, i, NULL));
    float *grad = probe_new(p, total, 1, 1, 1, err);
    if (!grad) return false;
    for (int i = 0; i < adapter_tensor_count(a); i++) {
        const adapter_tensor *t = adapter_tensor_at(a, i, NULL);
        if (!learner_read_grad(l, i, grad, err) || !probe_result(p, t->name, t->rank, t->dims, grad, err)) return false;
        grad += adapter_tensor_elements(t);
    }
    return true;
}

bool probe_train_grad(probe *p, error *err) {
    session *s = &p->session;
    adapter_spec spec;
    learner_batch batch;
    if (!read_batch(p, &batch, err) || !adapter_spec_parse(p->options->loras.item[0], &spec, err)) return false;
    adapter *a = session_add_adapter(s, &spec, true, err);
    free(spec.path);
    if (!a) return false;
    learner_options settings = learner_default_options();
    learner *l = learner_create(s->pipeline, a, &settings, err);
    float *loss = l ? probe_new(p, 1, 1, 1, 1, err) : NULL;
    bool ok = loss && learner_accumulate(l, &batch, loss, err) && probe_result(p, "loss", 0, NULL, loss, err) && write_grads(p, l, a, err);
    learner_free(l);
    return ok;
}
