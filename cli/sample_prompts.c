#include "cli/sample_prompts.h"

#include "base/file.h"
#include "base/memory.h"
#include "cli/options.h"

#include <stdlib.h>
#include <string.h>

static bool read_size(const char *what, const char *text, int *out, error *err) {
    int64_t value;
    if (!option_read_int(what, text, 64, 4096, 8, &value, err)) return false;
    *out = (int)value;
    return true;
}

/* One "--name value" of a line. */
static bool read_setting(sample_prompt *s, const char *name, const char *value, error *err) {
    int64_t number;
    double real;
    char what[16];
    snprintf(what, sizeof what, "--%.8s", name);
    if (!strcmp(name, "n")) {
        free(s->negative);
        s->negative = memory_string(value);
    } else if (!strcmp(name, "w")) {
        return read_size(what, value, &s->settings.width, err);
    } else if (!strcmp(name, "h")) {
        return read_size(what, value, &s->settings.height, err);
    } else if (!strcmp(name, "d")) {
        if (!option_read_int(what, value, 0, 9007199254740992.0, 0, &number, err)) return false;
        s->seed = (uint64_t)number;
    } else if (!strcmp(name, "l")) {
        if (!option_read_real(what, value, 0, 100, &real, err)) return false;
        s->settings.cfg = (float)real;
    } else if (!strcmp(name, "s")) {
        if (!option_read_int(what, value, 1, SCHEDULE_MAX_STEPS, 0, &number, err)) return false;
        s->settings.steps = (int)number;
    } else if (!strcmp(name, "ss")) {
        return (s->settings.sampler = sampler_kind_find(value, err)) != NULL;
    } else {
        return error_set(err, "--%.20s is not known here; known: --n --w --h --d --l --s --ss", name);
    }
    return true;
}

static char *trimmed(const char *text, size_t length) {
    while (length && strchr(" \t\r", text[length - 1])) length--;
    while (length && strchr(" \t", *text)) text++, length--;
    return memory_format("%.*s", (int)length, text);
}

/* Where the next " --x" begins, or the end. */
static const char *next_setting(const char *line) {
    const char *at = strstr(line, " --");
    return at ? at : line + strlen(line);
}

static bool read_line(sample_prompt *s, const char *line, error *err) {
    const char *end = next_setting(line);
    s->prompt = trimmed(line, (size_t)(end - line));
    bool ok = true;
    while (ok && *end) {
        const char *name = end + 3, *value = name + strcspn(name, " ");
        end = next_setting(value);
        char *key = trimmed(name, (size_t)(value - name)), *text = trimmed(value, (size_t)(end - value));
        ok = read_setting(s, key, text, err);
        free(key);
        free(text);
    }
    return ok;
}

bool sample_prompts_read(sample_prompts *out, const char *path, const draw_settings *defaults, uint64_t seed, error *err) {
    *out = (sample_prompts){NULL, 0};
    size_t size;
    char *text = file_read_text(path, (size_t)1 << 20, &size, err), *line = text;
    if (!text) return error_prefix(err, "--sample-prompts");
    bool ok = true;
    for (int number = 1; ok && line < text + size; number++) {
        char *end = line + strcspn(line, "\n"), *next = end + 1;
        *end = 0;
        char *content = trimmed(line, strlen(line));
        if (*content && *content != '#') {
            out->item = memory_grow(out->item, (size_t)out->count + 1, sizeof *out->item);
            sample_prompt *s = &out->item[out->count++];
            *s = (sample_prompt){.negative = memory_string(""), .settings = *defaults, .seed = seed};
            ok = read_line(s, content, err) || error_prefix(err, "%s: line %d", path, number);
        }
        free(content);
        line = next;
    }
    free(text);
    if (ok && !out->count) ok = error_set(err, "--sample-prompts: %s has no prompt in it", path);
    if (!ok) sample_prompts_free(out);
    return ok;
}

void sample_prompts_free(sample_prompts *prompts) {
    for (int i = 0; i < prompts->count; i++) {
        free(prompts->item[i].prompt);
        free(prompts->item[i].negative);
    }
    free(prompts->item);
    *prompts = (sample_prompts){NULL, 0};
}
