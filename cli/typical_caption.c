#include "cli/typical_caption.h"

#include <stdbool.h>
#include <string.h>
#include <strings.h>

static const char separators[] = " \t,.;:!?()[]{}\"";

/* Words that say nothing about the subject. */
static bool is_common(const char *word, size_t length) {
    static const char *const common[] = {"a",     "an",   "the",   "of",      "in",    "on",      "at",   "and",  "with",
                                         "to",    "by",   "for",   "from",    "is",    "its",     "this", "one",  "left",
                                         "right", "near", "photo", "picture", "image", "drawing", "big",  "small"};
    for (size_t i = 0; i < sizeof common / sizeof *common; i++)
        if (strlen(common[i]) == length && strncasecmp(common[i], word, length) == 0) return true;
    return false;
}

/* Whether the words stand in the caption, not as parts of others. */
static bool has_words(const char *caption, const char *words, size_t length) {
    for (const char *at = caption; *at; at++) {
        bool begins = at == caption || strchr(separators, at[-1]);
        if (begins && strncasecmp(at, words, length) == 0 && (!at[length] || strchr(separators, at[length]))) return true;
    }
    return false;
}

enum { CAPTIONS_COUNTED = 200 }; /* enough to tell, and quick */

static size_t captions_with(const dataset *data, const char *word, size_t length) {
    size_t n = 0;
    for (size_t i = 0; i < data->count && i < CAPTIONS_COUNTED; i++) n += has_words(data->images[i].caption, word, length);
    return n;
}

static const char *first_with(const dataset *data, const char *word, size_t length) {
    for (size_t i = 0; i < data->count; i++)
        if (has_words(data->images[i].caption, word, length)) return data->images[i].caption;
    return NULL;
}

const char *typical_caption(const dataset *data, const char *trigger) {
    const char *best = NULL;
    size_t best_length = 0, best_count = 0;
    if (trigger && *trigger && (best = first_with(data, trigger, strlen(trigger)))) return best;
    for (size_t i = 0; i < data->count && i < CAPTIONS_COUNTED; i++) {
        const char *word = data->images[i].caption + strspn(data->images[i].caption, separators);
        for (size_t length; *word; word += length, word += strspn(word, separators)) {
            length = strcspn(word, separators);
            size_t n = is_common(word, length) ? 0 : captions_with(data, word, length);
            if (n > best_count) best = word, best_length = length, best_count = n;
        }
    }
    return best ? first_with(data, best, best_length) : data->images[0].caption;
}
