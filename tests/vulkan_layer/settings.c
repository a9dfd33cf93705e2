#include "tests/vulkan_layer/settings.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    size_t offset;
} NAMES[] = {
#define S(name, what) {#name, offsetof(layer_settings, name)},
    LAYER_SETTINGS(S)
#undef S
};
enum { COUNT = sizeof NAMES / sizeof *NAMES };

static int64_t *setting_named(layer_settings *s, const char *name, size_t length) {
    for (size_t i = 0; i < COUNT; i++)
        if (strlen(NAMES[i].name) == length && strncmp(NAMES[i].name, name, length) == 0) return (int64_t *)((char *)s + NAMES[i].offset);
    return NULL;
}

bool layer_settings_read(const char *text, layer_settings *out) {
    for (size_t i = 0; i < COUNT; i++) *(int64_t *)((char *)out + NAMES[i].offset) = -1;
    while (text && *text) {
        size_t length = strcspn(text, "=");
        int64_t *value = text[length] ? setting_named(out, text, length) : NULL;
        char *end = NULL;
        if (!value) return false;
        *value = strtoll(text + length + 1, &end, 10);
        if (end == text + length + 1 || (*end && *end != ',')) return false;
        text = end + (*end == ',');
    }
    return true;
}
