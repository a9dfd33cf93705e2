#include "convert/spell.h"

#include "base/memory.h"
#include "convert/spell_peft.h"
#include "lora/dora.h"
#include "lycoris/kinds.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool spell_format_find(const char *name, spell_format *out) {
    static const char *const names[] = {"kohya", "peft", "diffusers"};
    for (int i = 0; i < 3; i++)
        if (strcmp(names[i], name) == 0) {
            *out = (spell_format)i;
            return true;
        }
    return false;
}

void spell_fold(draft_tensor *t, double factor) {
    if (factor == 1) return;
    for (size_t i = 0; i < t->elements; i++) t->values[i] = (float)((double)t->values[i] * factor);
    t->computed = true;
}

double spell_number(double value) {
    char text[32];
    for (int digits = 1; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if ((float)strtod(text, NULL) == (float)value) break;
    }
    return strtod(text, NULL);
}

bool spell_add(safetensors_writer *w, const draft_module *m, const draft_tensor *t, char *name, dtype type, error *err) {
    bool ok = safetensors_writer_add_f32(w, name, draft_type(m, t, type), t->rank, t->dims, t->values, err);
    free(name);
    return ok;
}

/* ---- kohya ---- */

static bool kohya_scalar(safetensors_writer *w, const draft_module *m, float *value, dtype type, error *err) {
    if (!m->kind->scalar) return true;
    *value = (float)m->alpha;
    dtype stored = draft_alpha_type(m, type);
    /* whole matrices are asked for by an absurd rank, which fp16 does not hold; without a rank alpha means nothing */
    if (m->kind == &adapter_kind_lokr && m->rank == 0 && stored == DTYPE_F16 && fabsf(*value) > 60000) *value = 1;
    char *name = memory_format("%s.%s", m->info->flat, m->kind->scalar);
    bool ok = safetensors_writer_add_f32(w, name, stored, 0, NULL, value, err);
    free(name);
    return ok;
}

/* webui refuses a file with a norm that has one of its two parts only. */
static void complete_norms(draft *d) {
    for (int i = 0; i < d->count; i++) {
        draft_module *m = &d->modules[i];
        if (m->kind != &adapter_kind_norm || m->count != 1) continue;
        const char *other = draft_find(m, "w_norm") ? "b_norm" : "w_norm";
        draft_put(m, other, 1, m->tensors[0].dims, memory_new(m->tensors[0].elements, sizeof(float)), m->tensors[0].type, false);
    }
}

static bool kohya_others(safetensors_writer *w, const spell_options *o, error *err) {
    for (size_t i = 0; i < o->other_count; i++) {
        const safetensors_tensor *t = o->others[i];
        if (!safetensors_writer_add(w, t->name, t->type, t->rank, t->dims, t->data, err)) return false;
    }
    return true;
}

static bool kohya_add(safetensors_writer *w, draft *d, float *scalars, const spell_options *o, error *err) {
    complete_norms(d);
    for (int i = 0; i < d->count; i++) {
        const draft_module *m = &d->modules[i];
        for (int k = 0; k < m->count; k++) {
            const draft_tensor *t = &m->tensors[k];
            if (!spell_add(w, m, t, memory_format("%s.%s", m->info->flat, t->part), o->type, err)) return false;
        }
        if (!kohya_scalar(w, m, &scalars[i], o->type, err)) return false;
    }
    return kohya_others(w, o, err);
}

/* ---- diffusers ---- */

static bool diffusers_holds(const draft_module *m, error *err) {
    const char *flat = m->info->flat;
    if (m->kind != &adapter_kind_lora)
        return error_set(err, "module %s: diffusers' format holds no %s; make it a LoRA with --kind lora --rank N", flat, m->kind->title);
    if (draft_find(m, "lora_mid.weight"))
        return error_set(err, "module %s: diffusers' format holds no Tucker factors (lora_mid); --kind lora multiplies them out", flat);
    if (draft_find(m, "bias"))
        return error_set(err, "module %s: diffusers' format holds no residual (bias); make it a LoRA with --kind lora --rank N", flat);
    if (draft_find(m, "dora_scale") && !m->dora_on_output)
        return error_set(
            err,
            "module %s: diffusers knows DoRA with norms of the outputs only, this one's are of the inputs; make it a LoRA with "
            "--kind lora --rank N --model M",
            flat);
    return true;
}

static bool diffusers_add(safetensors_writer *w, draft *d, const spell_options *o, error *err) {
    static const struct {
        const char *part, *name;
    } names[] = {{"lora_down.weight", "lora_A.weight"}, {"lora_up.weight", "lora_B.weight"}, {"dora_scale", "lora_magnitude_vector"}};
    for (int i = 0; i < d->count; i++) {
        draft_module *m = &d->modules[i];
        if (!diffusers_holds(m, err)) return false;
        spell_fold(draft_find(m, "lora_up.weight"), m->scale);
        m->scale = 1;
        m->alpha = (double)m->rank;
        draft_tensor *magnitude = draft_find(m, "dora_scale");
        if (magnitude) spell_magnitude(m, magnitude);
        const char *model = m->info->part == CHECKPOINT_UNET ? "unet" : "text_encoder";
        for (int k = 0; k < 3; k++) {
            const draft_tensor *t = draft_find(m, names[k].part);
            /* transformers, which loads the text encoder's, wants the parameter's whole name */
            const char *end = t == magnitude && m->info->part == CHECKPOINT_TEXT_ENCODER ? ".weight" : "";
            if (t && !spell_add(w, m, t, memory_format("%s.%s.%s%s", model, m->info->name, names[k].name, end), o->type, err)) return false;
        }
    }
    safetensors_writer_metadata(w, "format", "pt");
    return true;
}

/* ---- Files ---- */

bool spell_finish(safetensors_writer *w, const char *path, const spell_options *o, error *err) {
    char model[65], legacy[9];
    w->refuse_nonfinite = true;
    for (size_t i = 0; i < o->metadata_count; i++) safetensors_writer_metadata(w, o->metadata[i].key, o->metadata[i].value);
    if (!safetensors_writer_hashes(w, model, legacy, err)) return false;
    safetensors_writer_metadata(w, "sshs_model_hash", model);
    safetensors_writer_metadata(w, "sshs_legacy_hash", legacy);
    return safetensors_writer_write(w, path, err);
}

bool spell_write(draft *d, const char *path, const spell_options *o, error *err) {
    if (d->count == 0) return error_set(err, "%s: nothing is left to write", path);
    if (o->format == SPELL_PEFT) return spell_peft(d, path, o, err);
    safetensors_writer w = {0};
    float *scalars = memory_new((size_t)d->count, sizeof *scalars);
    bool ok = o->format == SPELL_DIFFUSERS ? diffusers_add(&w, d, o, err) : kohya_add(&w, d, scalars, o, err);
    ok = ok && spell_finish(&w, path, o, err);
    safetensors_writer_free(&w);
    free(scalars);
    return ok;
}
