#include "lora/peft.h"

#include "base/file.h"
#include "base/memory.h"

#include <jansson.h>
#include <math.h>
#include <regex.h>
#include <stdlib.h>
#include <string.h>

enum { CONFIG_BYTES = 1 << 24 };

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
    return config;
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

bool peft_scale(const json_t *config, const char *path, int64_t rank, double *scale, error *err) {
    const json_t *alpha = json_object_get(config, "lora_alpha");
    const char *pattern;
    json_t *value;
    json_t *patterns = json_object_get(config, "alpha_pattern");
    json_object_foreach(patterns, pattern, value) {
        if (!pattern_fits(pattern, path)) continue;
        alpha = value;
        break;
    }
    double number = alpha && !json_is_null(alpha) ? json_number_value(alpha) : 8; /* PEFT's default */
    if ((alpha && !json_is_null(alpha) && !json_is_number(alpha)) || !isfinite(number))
        return error_set(err, "PEFT's configuration: lora_alpha of %s is not a number", path);
    *scale = json_is_true(json_object_get(config, "use_rslora")) ? number / sqrt((double)rank) : number / (double)rank;
    return true;
}
