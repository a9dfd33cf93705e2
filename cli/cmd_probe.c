/* vulora probe PART: one part of the model on given tensors. A part is a row of the table at the end. */
#include "base/file.h"
#include "base/memory.h"
#include "cli/commands.h"
#include "cli/nearest.h"
#include "cli/probe.h"
#include "cli/terminal.h"

#include <stdlib.h>
#include <string.h>

static const probe_part parts[] = {
    {"text-encoder", PROBE_MODEL | PROBE_INPUT | PROBE_OUTPUT, probe_text_encoder},
    {"unet", PROBE_MODEL | PROBE_INPUT | PROBE_OUTPUT, probe_unet},
    {"vae-encode", PROBE_MODEL | PROBE_INPUT | PROBE_OUTPUT, probe_vae_encode},
    {"vae-decode", PROBE_MODEL | PROBE_INPUT | PROBE_OUTPUT, probe_vae_decode},
    {"train-grad", PROBE_MODEL | PROBE_INPUT | PROBE_OUTPUT | PROBE_ONE_LORA, probe_train_grad},
    {"schedule", PROBE_OUTPUT, probe_schedule},
    {"denoise", PROBE_MODEL | PROBE_INPUT | PROBE_OUTPUT, probe_denoise},
    {"tokenizer", PROBE_INPUT, probe_tokenizer},
};

enum { PART_COUNT = sizeof parts / sizeof *parts };

static const probe_part *find_part(const char *name, error *err) {
    char known[256] = "";
    nearest search = nearest_begin(name);
    for (int i = 0; i < PART_COUNT; i++) {
        if (option_name_equal(parts[i].name, name)) return &parts[i];
        nearest_try(&search, parts[i].name, parts[i].name);
        snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", i ? ", " : "", parts[i].name);
    }
    if (search.best)
        error_set(err, "probe: unknown part '%.100s'; did you mean %s? Known: %s", name, search.best, known);
    else
        error_set(err, "probe: unknown part '%.100s'; known: %s", name, known);
    return NULL;
}

static bool check_options(const probe_part *part, const options *o, error *err) {
    if ((part->needs & PROBE_MODEL) && !o->model) return error_set(err, "probe %s needs --model", part->name);
    if ((part->needs & PROBE_INPUT) && !o->input) return error_set(err, "probe %s needs --input", part->name);
    if ((part->needs & PROBE_OUTPUT) && !o->output) return error_set(err, "probe %s needs --output", part->name);
    if ((part->needs & PROBE_ONE_LORA) && o->loras.count != 1)
        return error_set(err, "probe %s needs exactly one --lora, the adapter whose gradient is asked for", part->name);
    return true;
}

int cmd_probe(const options *o) {
    error err = {""};
    const probe_part *part = find_part(o->words.item[0], &err);
    if (!part || !check_options(part, o, &err)) return terminal_refuse(&err);
    if (part->needs & PROBE_OUTPUT && !file_check_output(o->output, "--output", &err)) return terminal_fail(&err);
    probe p = {.options = o};
    bool ok = true;
    if (part->needs & PROBE_MODEL)
        ok = safetensors_open(&p.in, o->input, &err) &&
             (part->needs & PROBE_ONE_LORA ? session_open_device(&p.session, o, &err) && session_open_model(&p.session, o, &err)
                                           : session_open(&p.session, o, &err));
    ok = ok && part->run(&p, &err);
    if (ok && part->needs & PROBE_OUTPUT) ok = safetensors_writer_write(&p.out, o->output, &err);
    safetensors_writer_free(&p.out);
    for (int i = 0; i < p.block_count; i++) free(p.blocks[i]);
    session_close(&p.session);
    safetensors_close(&p.in);
    return ok ? EXIT_DONE : terminal_fail(&err);
}

float *probe_new(probe *p, int64_t a, int64_t b, int64_t c, int64_t d, error *err) {
    float *block = memory_try_aligned((size_t)(a * b * c * d) * sizeof *block + 64);
    if (!block)
        error_set(err, "no memory for a result of %lld x %lld x %lld x %lld numbers", (long long)a, (long long)b, (long long)c,
                  (long long)d);
    else
        probe_own(p, block);
    return block;
}

void *probe_own(probe *p, void *block) {
    if (p->block_count == PROBE_BLOCKS) {
        free(block);
        return NULL;
    }
    return p->blocks[p->block_count++] = block;
}

bool probe_read(probe *p, const char *name, const char *shape, int rank, int64_t *dims, float **values, error *err) {
    if (!tensors_read(&p->in, name, shape, rank, dims, values, err)) return false;
    probe_own(p, *values);
    return true;
}

bool probe_read_ints(probe *p, const char *name, const char *shape, int rank, int64_t *dims, int32_t low, int32_t high, int32_t **values,
                     error *err) {
    if (!tensors_read_ints(&p->in, name, shape, rank, dims, low, high, values, err)) return false;
    probe_own(p, *values);
    return true;
}

bool probe_result(probe *p, const char *name, int rank, const int64_t *dims, const float *values, error *err) {
    return safetensors_writer_add_f32(&p->out, name, DTYPE_F32, rank, dims, values, err);
}
