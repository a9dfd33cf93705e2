#include "cli/options.h"

#include "base/memory.h"
#include "cli/nearest.h"
#include "cli/network_args.h"
#include "cli/samplers.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- names ---- */

static int fold(char c) { return c == '_' ? '-' : c; }

bool option_name_equal(const char *a, const char *b) {
    while (*a && *b && fold(*a) == fold(*b)) a++, b++;
    return !*a && !*b;
}

bool option_each_name(const char *names, char separator, bool (*visit)(void *user, const char *name), void *user) {
    char name[128];
    while (names && *names) {
        const char *end = strchr(names, separator);
        size_t length = end ? (size_t)(end - names) : strlen(names);
        if (length > 0 && length < sizeof name) {
            memcpy(name, names, length);
            name[length] = 0;
            if (visit(user, name)) return true;
        }
        names += length + (end != NULL);
    }
    return false;
}

static bool same_name(void *user, const char *name) { return option_name_equal(user, name); }

static bool option_has_name(const option *row, const char *name) {
    char copy[128];
    if (strlen(name) >= sizeof copy) return false;
    memcpy(copy, name, strlen(name) + 1);
    return option_name_equal(row->name, name) || option_each_name(row->aliases, ' ', same_name, copy);
}

const option *option_find(const char *name, unsigned commands) {
    const option *elsewhere = NULL;
    for (const option *row = option_table; row->name; row++) {
        if (!option_has_name(row, name)) continue;
        if (row->commands & commands) return row;
        if (!elsewhere) elsewhere = row;
    }
    return elsewhere;
}

const command *command_find(const char *name) {
    for (const command *c = command_table; c->name; c++) {
        char copy[64];
        if (strlen(name) >= sizeof copy) return NULL;
        memcpy(copy, name, strlen(name) + 1);
        if (option_name_equal(c->name, name) || option_each_name(c->aliases, ' ', same_name, copy)) return c;
    }
    return NULL;
}

/* ---- numbers ---- */

bool option_read_int(const char *what, const char *text, double low, double high, int multiple, int64_t *out, error *err) {
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (end == text || *end || isspace((unsigned char)*text)) return error_set(err, "%s: '%s' is not a whole number", what, text);
    if (errno == ERANGE || (double)value < low || (double)value > high)
        return error_set(err, "%s: %s is out of range; it goes from %.0f to %.0f", what, text, low, high);
    if (multiple > 1 && value % multiple)
        return error_set(err, "%s: %s is not a multiple of %d; %lld is", what, text, multiple,
                         value / multiple * multiple < (long long)low ? (long long)low : value / multiple * multiple);
    *out = value;
    return true;
}

bool option_read_real(const char *what, const char *text, double low, double high, double *out, error *err) {
    char *end;
    double value = strtod(text, &end);
    /* strtod also takes hexadecimal, "inf" and "nan": nobody means those. */
    if (end == text || *end || strpbrk(text, "xXnN") || isspace((unsigned char)*text))
        return error_set(err, "%s: '%s' is not a number", what, text);
    if (!isfinite(value) || value < low || value > high)
        return error_set(err, "%s: %s is out of range; it goes from %g to %g", what, text, low, high);
    *out = value;
    return true;
}

static bool read_size(const char *what, const char *text, const option *row, options_size *out, error *err) {
    char copy[64];
    int64_t width, height;
    if (strlen(text) >= sizeof copy) return error_set(err, "%s: '%s' is not a size; write 512 or 512x768", what, text);
    memcpy(copy, text, strlen(text) + 1);
    char *cross = strpbrk(copy, "xX,*");
    const char *second = copy;
    if (cross) {
        *cross = 0;
        second = cross + 1;
    }
    if (!copy[strspn(copy, " ")] || !second[strspn(second, " ")] || strspn(copy, "0123456789") != strlen(copy) ||
        strspn(second, "0123456789") != strlen(second))
        return error_set(err, "%s: '%s' is not a size; write 512 or 512x768", what, text);
    if (!option_read_int(what, copy, row->low, row->high, row->multiple, &width, err) ||
        !option_read_int(what, second, row->low, row->high, row->multiple, &height, err))
        return false;
    *out = (options_size){(int)width, (int)height};
    return true;
}

/* ---- choices ---- */

/* Case, '-', '_' and blanks count the same: "Euler a" is euler_a. */
static bool loosely_equal(const char *a, const char *b) {
    for (; *a && *b; a++, b++) {
        int x = *a == '_' || *a == ' ' ? '-' : tolower((unsigned char)*a), y = *b == '_' || *b == ' ' ? '-' : tolower((unsigned char)*b);
        if (x != y) return false;
    }
    return !*a && !*b;
}

static bool same_choice(void *user, const char *name) { return loosely_equal(user, name); }

static const char *choice_at(const option *row, int index) { return row->choices ? row->choices[index].name : row->choice_at(index); }

static const char *choice_find(const option *row, const char *text) {
    char copy[128];
    if (strlen(text) >= sizeof copy) return NULL;
    if (row->choice_find) return row->choice_find(text);
    memcpy(copy, text, strlen(text) + 1);
    const char *name;
    for (int i = 0; !row->choices && (name = row->choice_at(i)); i++)
        if (loosely_equal(name, copy)) return name;
    for (const option_choice *c = row->choices; c && c->name; c++)
        if (loosely_equal(c->name, copy) || option_each_name(c->aliases, '|', same_choice, copy)) return c->name;
    return NULL;
}

static bool read_choice(const char *what, const char *text, const option *row, const char **out, error *err) {
    const char *found = choice_find(row, text), *name;
    if (found) {
        *out = found;
        return true;
    }
    char known[512] = "";
    nearest search = nearest_begin(text);
    for (int i = 0; (name = choice_at(row, i)); i++) {
        nearest_try(&search, name, name);
        snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", i ? ", " : "", name);
    }
    return search.best ? error_set(err, "%s: unknown value '%.100s'; did you mean %s? Known: %s", what, text, search.best, known)
                       : error_set(err, "%s: unknown value '%.100s'; known: %s", what, text, known);
}

/* ---- one option ---- */

void options_list_add(options_list *list, const char *text) {
    list->item = memory_grow(list->item, (size_t)list->count + 1, sizeof *list->item);
    list->item[list->count++] = text;
}

static bool store(options *o, const option *row, const char *what, const char *text, error *err) {
    void *field = (char *)o + row->offset;
    switch (row->type) {
    case OPTION_SWITCH: *(int *)field = text[0] == '1'; return true;
    case OPTION_INT: return option_read_int(what, text, row->low, row->high, row->multiple, field, err);
    case OPTION_REAL: return option_read_real(what, text, row->low, row->high, field, err);
    case OPTION_SIZE: return read_size(what, text, row, field, err);
    case OPTION_CHOICE: return read_choice(what, text, row, field, err);
    case OPTION_FILE:
        if (!*text) return error_set(err, "%s: is empty; it needs a %s", what, row->value);
        *(const char **)field = text;
        return true;
    case OPTION_TEXT: *(const char **)field = text; return true;
    case OPTION_LIST:
        if (!*text) return error_set(err, "%s: is empty; it needs a %s", what, row->value);
        options_list_add(field, text);
        return true;
    case OPTION_NOTED: options_list_add(&o->noted, row->name); return true;
    case OPTION_REFUSED: return error_set(err, "%s is not an option here: %s", what, row->help);
    }
    return false;
}

bool options_set(options *o, const char *what, const char *name, const char *value, error *err) {
    const option *row = option_find(name, o->command->bit);
    o->given[row - option_table] = value;
    return store(o, row, what, value, err);
}

static void set_defaults(options *o, unsigned bit) {
    for (const option *row = option_table; row->name; row++) {
        void *field = (char *)o + row->offset;
        if (row->type == OPTION_SWITCH && !row->fallback && row->commands & bit) *(int *)field = -1;
        if (row->type == OPTION_REAL && !row->fallback && row->commands & bit) *(double *)field = NAN;
        if (row->fallback && row->commands & bit) store(o, row, row->name, row->fallback, NULL);
    }
}

static bool takes_value(const option *row) { return row->type != OPTION_SWITCH && (row->type != OPTION_NOTED || row->value); }

static bool nearest_alias(void *user, const char *name) {
    void **pair = user;
    nearest_try(pair[0], name, pair[1]);
    return false;
}

static bool refuse_unknown(const char *argument, const char *name, const command *c, error *err) {
    nearest here = nearest_begin(name);
    for (const option *row = option_table; row->name; row++) {
        if (!(row->commands & c->bit) || row->type == OPTION_REFUSED) continue;
        union {
            const char *text;
            void *user;
        } shown = {.text = row->name};
        nearest_try(&here, row->name, row->name);
        option_each_name(row->aliases, ' ', nearest_alias, (void *[]){&here, shown.user});
    }
    if (here.best) return error_set(err, "unknown option %s; did you mean --%s?", argument, here.best);
    return error_set(err, "unknown option %s; 'vulora %s --help' lists what there is", argument, c->name);
}

static void command_names(char *out, size_t size, unsigned commands) {
    *out = 0;
    int left = 0;
    for (const command *c = command_table; c->name; c++) left += (c->bit & commands) != 0;
    for (const command *c = command_table; c->name; c++) {
        if (!(c->bit & commands)) continue;
        left--;
        snprintf(out + strlen(out), size - strlen(out), "%s%s", c->name, left > 1 ? ", " : left == 1 ? " and " : "");
    }
}

/* argument: "--name" or "--name=value"; *index is moved past a value that stands by itself. */
static bool read_option(options *o, const command *c, int argc, char **argv, int *index, error *err) {
    char name[128], what[132];
    const char *argument = argv[*index], *text = argument + 1 + (argument[1] == '-'), *value = strchr(text, '=');
    size_t length = value ? (size_t)(value - text) : strlen(text);
    if (length >= sizeof name) return error_set(err, "unknown option %.40s...; 'vulora %s --help' lists what there is", argument, c->name);
    memcpy(name, text, length);
    name[length] = 0;
    snprintf(what, sizeof what, "--%s", name);
    if (value) value++;
    const option *row = argument[1] == '-' ? option_find(name, c->bit) : NULL;
    bool negated = false;
    if (!row && !strncmp(name, "no-", 3) + !strncmp(name, "no_", 3)) {
        row = option_find(name + 3, c->bit);
        if (row && row->type != OPTION_SWITCH) row = NULL;
        negated = row != NULL;
    }
    if (!row) {
        snprintf(what, sizeof what, "%.*s%s", (int)(text - argument), argument, name);
        return refuse_unknown(what, name, c, err);
    }
    if (!(row->commands & c->bit)) {
        char names[128];
        unsigned commands = 0;
        for (const option *r = option_table; r->name; r++)
            if (option_has_name(r, name)) commands |= r->commands;
        command_names(names, sizeof names, commands);
        return error_set(err, "%s is an option of %s, not of %s", what, names, c->name);
    }
    if (row->type == OPTION_REFUSED) return store(o, row, what, "", err);
    if (takes_value(row)) {
        if (!value && (*index + 1 >= argc || !strncmp(argv[*index + 1], "--", 2)))
            return error_set(err, "%s needs a value: %s %s", what, what, row->value);
        if (!value) value = argv[++*index];
    } else if (value) {
        if (row->type != OPTION_SWITCH) return error_set(err, "%s takes no value", what);
        return error_set(err, "%s takes no value; write %s or --no-%s", what, what, row->name);
    } else {
        value = negated ? "0" : "1";
    }
    o->given[row - option_table] = value;
    if (!store(o, row, what, value, err)) return false;
    for (; row->several && *index + 1 < argc && argv[*index + 1][0] != '-'; ++*index)
        if (!store(o, row, what, argv[*index + 1], err)) return false;
    return true;
}

static bool read_arguments(options *o, const command *c, int argc, char **argv, error *err) {
    bool only_words = false;
    for (int i = 0; i < argc; i++) {
        const char *argument = argv[i];
        if (!only_words && !strcmp(argument, "--")) {
            only_words = true;
        } else if (!only_words && !strcmp(argument, "-h")) {
            o->help = 1;
        } else if (!only_words && !strcmp(argument, "-q")) {
            o->quiet = 1;
        } else if (!only_words && !strcmp(argument, "-v")) {
            o->verbose = 1;
        } else if (!only_words && argument[0] == '-' && argument[1]) {
            if (!read_option(o, c, argc, argv, &i, err)) return false;
        } else {
            options_list_add(&o->words, argument);
        }
        if (o->help) return true;
    }
    return true;
}

bool options_parse(options *o, const command *c, int argc, char **argv, error *err) {
    *o = (options){.command = c};
    set_defaults(o, c->bit);
    if (!read_arguments(o, c, argc, argv, err)) return false;
    if (o->help) return true;
    if ((o->network_module || o->network_args.count) && !network_args_apply(o, err)) return false;
    if (sampler_names_karras(options_text(o, "sampler")) && !options_given(o, "schedule")) o->schedule = "karras";
    if (o->words.count > c->words_most)
        return c->words_most
                   ? error_set(err, "'%s' is one word too many; usage: vulora %s %s", o->words.item[c->words_most], c->name, c->words)
                   : error_set(err, "'%s' is no option of %s; options begin with --, and texts with blanks stand in quotes",
                               o->words.item[0], c->name);
    if (o->words.count < c->words_least) return error_set(err, "%s needs %s; usage: vulora %s %s", c->name, c->words, c->name, c->words);
    return true;
}

void options_free(options *o) {
    free(o->words.item);
    free(o->noted.item);
    free(o->remarks.item);
    for (const option *row = option_table; row->name; row++) {
        options_list *list = row->type == OPTION_LIST ? (options_list *)(void *)((char *)o + row->offset) : NULL;
        if (!list) continue;
        free(list->item);
        *list = (options_list){0}; /* other rows may mean the same field */
    }
    *o = (options){0};
}

bool options_given(const options *o, const char *name) { return options_text(o, name) != NULL; }

const char *options_text(const options *o, const char *name) {
    const option *row = option_find(name, o->command->bit);
    return row ? o->given[row - option_table] : NULL;
}
