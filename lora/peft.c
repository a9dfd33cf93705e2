#include "lora/peft.h"

#include "base/file.h"
#include "base/memory.h"

#include <jansson.h>
#include <math.h>
#include <regex.h>
#include <stdlib.h>
#include <string.h>

enum { CONFIG_BYTES = 1 << 24 };

static bool has_type(const json_t *config, const char *type) {
    const char *text = json_string_value(json_object_get(config, "peft_type"));
    return text && strcmp(text, type) == 0;
}

json_t *peft_config_read(const char *path, error *err) {
    size_t size;
    char *text = file_read_text(path, CONFIG_BYTES, &size, err);
    if (!text) return NULL;
    json_error_t bad;
    json_t *config = json_loadb(text, size, 0, &bad);
    free(text);
    if (!json_is_object(config)) {
        error_set(err, "%s: is no JSON object: %s (line %d)", path, config ? "another value" : bad.text, config ? 1 : bad.line);
        json_decref(config);
        return NULL;
    }
    /* Others that look like these, as AdaLoRA, say more than the tensors read here. */
    static const char *const types[] = {"LORA", "LOHA", "LOKR", "IA3", "OFT", "BOFT"};
    const json_t *type = json_object_get(config, "peft_type");
    bool known = !type || json_is_null(type);
    for (size_t i = 0; !known && i < sizeof types / sizeof *types; i++) known = has_type(config, types[i]);
    if (known) return config;
    error_set(err, "%s: PEFT's %s is not known here; LORA, LOHA, LOKR, IA3, OFT and BOFT are", path,
              json_is_string(type) ? json_string_value(type) : "peft_type");
    json_decref(config);
    return NULL;
}

bool peft_config_from_metadata(const safetensors *st, json_t *config[CHECKPOINT_PARTS], error *err) {
    static const struct {
        const char *prefix;
        checkpoint_part part;
    } models[] = {{"unet.", CHECKPOINT_UNET}, {"text_encoder.", CHECKPOINT_TEXT_ENCODER}};
    const char *text = safetensors_metadata(st, "lora_adapter_metadata");
    if (!text) return true;
    json_error_t bad;
    json_t *all = json_loads(text, 0, &bad);
    if (!json_is_object(all)) {
        json_decref(all);
        return error_set(err, "%s: metadata lora_adapter_metadata is no JSON object", st->path);
    }
    const char *key;
    json_t *value;
    json_object_foreach(all, key, value) {
        bool prefixed = false;
        for (int pass = 0; pass < 2; pass++)
            for (int m = 0; m < 2; m++) {
                size_t n = strlen(models[m].prefix);
                bool mine = strncmp(key, models[m].prefix, n) == 0;
                if (pass == 0) prefixed = prefixed || mine;
                if (pass == 0 || (prefixed && !mine)) continue;
                json_t **into = &config[models[m].part];
                if (!*into) *into = json_object();
                json_object_set(*into, prefixed ? key + n : key, value);
            }
    }
    json_decref(all);
    return true;
}

/* PATTERN, as a Python regular expression, fits the whole path or what follows a dot in it. */
static bool pattern_fits(const char *pattern, const char *path) {
    char *expression = memory_new(4 * strlen(pattern) + 16, 1), *out = expression;
    out += strlen(strcpy(out, "^(.*\\.)?("));
    for (const char *p = pattern; *p; p++) {
        if (p[0] == '\\' && p[1] == 'd') {
            out += strlen(strcpy(out, "[0-9]"));
            p++;
        } else {
            *out++ = *p;
        }
    }
    strcpy(out, ")$");
    regex_t regex;
    bool fits = false;
    if (regcomp(&regex, expression, REG_EXTENDED | REG_NOSUB) == 0) {
        fits = regexec(&regex, path, 0, NULL, 0) == 0;
        regfree(&regex);
    }
    free(expression);
    return fits;
}

/* The configuration's value for a module: by the first pattern that fits, else the one for all, else PEFT's default. */
static bool module_value(const json_t *config, const char *key, const char *patterns_key, const char *path, double *value, error *err) {
    const json_t *found = json_object_get(config, key);
    const char *pattern;
    json_t *own, *patterns = json_object_get(config, patterns_key);
    json_object_foreach(patterns, pattern, own) {
        if (!pattern_fits(pattern, path)) continue;
        found = own;
        break;
    }
    *value = found && !json_is_null(found) ? json_number_value(found) : 8;
    if ((found && !json_is_null(found) && !json_is_number(found)) || !isfinite(*value))
        return error_set(err, "PEFT's configuration: %s of %s is not a number", key, path);
    return true;
}

bool peft_lists(const json_t *config, const char *key, const char *path) {
    const json_t *names = json_object_get(config, key), *name;
    if (json_is_string(names)) return pattern_fits(json_string_value(names), path);
    size_t i, n = strlen(path);
    json_array_foreach(names, i, name) {
        size_t length = json_string_length(name);
        if (json_is_string(name) && length <= n && strcmp(path + n - length, json_string_value(name)) == 0) return true;
    }
    return false;
}

bool peft_scale(const json_t *config, const char *path, int64_t rank, double *scale, error *err) {
    bool lycoris = has_type(config, "LOHA") || has_type(config, "LOKR");
    double alpha, r = (double)rank;
    if (!module_value(config, lycoris ? "alpha" : "lora_alpha", "alpha_pattern", path, &alpha, err)) return false;
    if (rank == 0 && !module_value(config, "r", "rank_pattern", path, &r, err)) return false;
    if (r < 1) return error_set(err, "PEFT's configuration: r of %s is not positive", path);
    *scale = json_is_true(json_object_get(config, "use_rslora")) ? alpha / sqrt(r) : alpha / r;
    return true;
}
