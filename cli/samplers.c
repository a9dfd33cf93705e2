#include "cli/samplers.h"

#include <string.h>
#include <strings.h>

const char *sampler_name_at(int index) {
    const sampler_kind *kind = sampler_kind_at(index);
    return kind ? kind->name : NULL;
}

bool sampler_names_karras(const char *text) {
    size_t length = text ? strlen(text) : 0;
    return length > 7 && strchr(" _-", text[length - 7]) && !strcasecmp(text + length - 6, "karras");
}

const char *sampler_name_find(const char *text) {
    char copy[128];
    size_t length = strlen(text);
    if (length >= sizeof copy) return NULL;
    memcpy(copy, text, length + 1);
    if (sampler_names_karras(text)) copy[length - 7] = 0;
    const sampler_kind *kind = sampler_kind_find(copy, NULL);
    return kind ? kind->name : NULL;
}
