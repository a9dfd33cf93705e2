#include "cli/session.h"

#include "base/file.h"
#include "base/memory.h"
#include "cli/terminal.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FULL_CHANNELS = 320 }; /* of SD 1.5's first convolution */

static const char demo_file[] = "demo.safetensors";

/* ---- the demo model ---- */

/* Beside the program (an unpacked archive, an installed tree), else in the source tree it was built from. */
static char *find_demo(void) {
    static const char *const beside[] = {"models", "../models", "../share/vulora/models"};
    char program[4096];
    ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    if (length > 0) {
        program[length] = 0;
        char *slash = strrchr(program, '/');
        if (slash) *slash = 0;
        for (size_t i = 0; i < sizeof beside / sizeof *beside; i++) {
            char *path = memory_format("%s/%s/%s", program, beside[i], demo_file);
            if (file_exists(path)) return path;
            free(path);
        }
    }
    char *path = memory_format("%s/%s", VULORA_MODELS, demo_file);
    if (file_exists(path)) return path;
    free(path);
    return NULL;
}

char *session_find_model(const char *name, error *err) {
    if (!name) {
        error_set(err, "--model is missing: name a Stable Diffusion 1.5 checkpoint (.safetensors), a diffusers folder, or demo");
        return NULL;
    }
    if (strcmp(name, "demo") != 0) return memory_string(name);
    char *path = find_demo();
    if (!path) error_set(err, "--model demo: %s is not beside the program; name the file itself", demo_file);
    return path;
}

static bool is_narrow(const checkpoint *model) {
    const checkpoint_tensor *first = checkpoint_find(model, CHECKPOINT_UNET, "conv_in.weight");
    return first && first->dims[0] < FULL_CHANNELS;
}

double session_native_rate(const session *s) { return is_narrow(&s->pipeline->model) ? 1e-3 : 1e-4; }

options_size session_native_size(const session *s) {
    const checkpoint *model = &s->pipeline->model;
    const char *text = model->file_count ? safetensors_metadata(&model->files[0], "modelspec.resolution") : NULL;
    int side = is_narrow(model) ? 128 : 512;
    options_size size = {side, side};
    int width, height;
    if (text && sscanf(text, "%dx%d", &width, &height) == 2 && width >= 64 && height >= 64 && width % 8 == 0 && height % 8 == 0 &&
        width <= 4096 && height <= 4096)
        size = (options_size){width, height};
    return size;
}

/* ---- opening ---- */

bool session_open_device(session *s, const options *o, error *err) {
    s->device = device_open(o->device, o->precision, (int)o->threads, err);
    if (!s->device || !device_set_kernels(s->device, o->cpu_kernels, err)) return false;
    if (o->memory_limit > 0) s->device->memory_limit = (uint64_t)(o->memory_limit * 1073741824.0);
    if (s->device->gpu)
        terminal_say("device: %s, %s", s->device->name, device_precision(s->device));
    else
        terminal_say("device: CPU, %d thread%s, %s, %s kernels", s->device->threads, s->device->threads == 1 ? "" : "s",
                     device_precision(s->device), device_kernels_name(s->device));
    return true;
}

bool session_open_model(session *s, const options *o, error *err) {
    s->model_path = session_find_model(o->model, err);
    if (!s->model_path) return false;
    s->pipeline = pipeline_open(s->model_path, o->vae, o->tokenizer, s->device, err);
    return s->pipeline != NULL;
}

adapter *session_add_adapter(session *s, const adapter_spec *spec, bool trainable, error *err) {
    adapter_report report = {0};
    const char *path = spec->path;
    adapter *a = adapter_load(path, s->pipeline->modules, s->device, trainable, &report, err);
    if (!a) return NULL;
    char text[2048];
    adapter_report_text(&report, path, terminal_verbose() ? report.unapplied_count : 4, text, sizeof text);
    if (*text)
        terminal_warn("%s", text);
    else
        terminal_detail("%s: all %d modules applied", path, report.total);
    adapter_report_free(&report);
    adapter_stack_add(s->pipeline->adapters, a, spec->unet_weight, spec->text_weight);
    adapter_stack_set_blocks(s->pipeline->adapters, a, &spec->blocks);
    pipeline_adapters_changed(s->pipeline);
    return a;
}

static bool add_adapters(session *s, const options *o, error *err) {
    for (int i = 0; i < o->loras.count; i++) {
        adapter_spec spec;
        if (!adapter_spec_parse(o->loras.item[i], &spec, err)) return false;
        adapter *a = session_add_adapter(s, &spec, false, err);
        free(spec.path);
        if (!a) return false;
    }
    return true;
}

bool session_open(session *s, const options *o, error *err) {
    *s = (session){NULL, NULL, NULL};
    if (session_open_device(s, o, err) && session_open_model(s, o, err) && add_adapters(s, o, err)) return true;
    session_close(s);
    return false;
}

void session_close(session *s) {
    pipeline_close(s->pipeline);
    device_close(s->device);
    free(s->model_path);
    *s = (session){NULL, NULL, NULL};
}
