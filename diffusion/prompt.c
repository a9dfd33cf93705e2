/* The outer syntax of a prompt: <lora:...> tags, AND, and texts that change over the steps. */
#include "diffusion/prompt.h"

#include "base/memory.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_NESTING = 64, MAX_LENGTH = 65536 };

typedef struct buffer {
    char *text;
    size_t length, capacity;
} buffer;

static void buffer_add(buffer *b, const char *text, size_t length) {
    if (b->length + length + 1 > b->capacity) {
        b->capacity = 2 * (b->length + length + 1);
        b->text = memory_grow(b->text, b->capacity, 1);
    }
    if (length) memcpy(b->text + b->length, text, length);
    b->length += length;
    b->text[b->length] = 0;
}

/* Letters, digits, _ and everything beyond ASCII. */
static bool is_word(char c) { return isalnum((unsigned char)c) || c == '_' || (unsigned char)c >= 128; }

/* --- <lora:NAME:...> --- */

static bool parse_weight(float *weight, const char *text, size_t length, const char *tag, size_t tag_length, error *err) {
    char copy[64], *end = copy;
    double value = 0;
    if (length < sizeof copy) {
        memcpy(copy, text, length);
        copy[length] = 0;
        value = strtod(copy, &end);
        while (isspace((unsigned char)*end)) end++;
    }
    if (length == 0 || length >= sizeof copy || end == copy || *end || !isfinite(value) || fabs(value) > 1e6)
        return error_set(err, "prompt: %.*s: '%.*s' is not a weight; write <lora:NAME:0.8>", (int)(tag_length < 200 ? tag_length : 200),
                         tag, (int)(length < 60 ? length : 60), text);
    *weight = (float)value;
    return true;
}

/* One part behind the name. position: 1 for the first without a key. */
static bool parse_lora_part(prompt_lora *lora, float *unet, int *position, const char *part, size_t length, const char *tag,
                            size_t tag_length, error *err) {
    const char *equals = memchr(part, '=', length);
    size_t key = equals ? (size_t)(equals - part) : 0, rest = equals ? length - key - 1 : length;
    const char *value = equals ? equals + 1 : part;
    if (!equals) ++*position;
    if (key == 3 && memcmp(part, "lbw", 3) == 0) {
        free(lora->blocks);
        lora->blocks = memory_format("%.*s", (int)rest, value);
        return true;
    }
    if ((!equals && *position == 1) || (key == 2 && memcmp(part, "te", 2) == 0))
        return parse_weight(&lora->te_weight, value, rest, tag, tag_length, err);
    if ((!equals && *position == 2) || (key == 4 && memcmp(part, "unet", 4) == 0))
        return parse_weight(unet, value, rest, tag, tag_length, err);
    return error_set(err,
                     "prompt: %.*s: '%.*s' is not supported; a text encoder weight, a U-Net weight and weights by block are: "
                     "<lora:NAME:0.8:0.5> or <lora:NAME:te=0.8:unet=0.5:lbw=OUTALL>",
                     (int)(tag_length < 200 ? tag_length : 200), tag, (int)(length < 60 ? length : 60), part);
}

/* args: what stands between "<lora:" and ">". */
static bool parse_lora(prompt_plan *p, const char *args, size_t length, const char *tag, size_t tag_length, error *err) {
    const char *end = args + length, *colon = memchr(args, ':', length), *name_end = colon ? colon : end;
    if (name_end == args)
        return error_set(err, "prompt: %.*s names no adapter; write <lora:NAME:0.8>", (int)(tag_length < 200 ? tag_length : 200), tag);
    prompt_lora lora = {.te_weight = 1};
    float unet = NAN;
    int position = 0;
    for (const char *part = name_end; part < end;) {
        part++;
        const char *next = memchr(part, ':', (size_t)(end - part));
        if (!next) next = end;
        if (!parse_lora_part(&lora, &unet, &position, part, (size_t)(next - part), tag, tag_length, err)) {
            free(lora.blocks);
            return false;
        }
        part = next;
    }
    lora.unet_weight = isnan(unet) ? lora.te_weight : unet;
    lora.name = memory_format("%.*s", (int)(name_end - args), args);
    p->loras = memory_grow(p->loras, (size_t)p->lora_count + 1, sizeof *p->loras);
    p->loras[p->lora_count++] = lora;
    return true;
}

/* A tag <word:anything> at text: its length with both brackets, else 0; *word_length is the word's. */
static size_t tag_length_at(const char *text, size_t *word_length) {
    size_t w = 1;
    while (is_word(text[w])) w++;
    *word_length = w - 1;
    if (w == 1 || text[w] != ':') return 0;
    size_t args = strcspn(text + w + 1, ">");
    return args > 0 && text[w + 1 + args] == '>' ? w + args + 2 : 0;
}

/* Copies text into out without the adapters' tags, which go into the list. */
static bool take_loras(prompt_plan *p, const char *text, bool negative, buffer *out, error *err) {
    while (*text) {
        size_t plain = strcspn(text, "<"), word, length;
        buffer_add(out, text, plain);
        text += plain;
        if (!*text) break;
        length = tag_length_at(text, &word);
        bool lora = length && word == 4 && (memcmp(text + 1, "lora", 4) == 0 || memcmp(text + 1, "lyco", 4) == 0);
        if (length && word == 8 && memcmp(text + 1, "hypernet", 8) == 0)
            return error_set(err, "prompt: %.*s: hypernetworks are not supported; remove it", (int)(length < 200 ? length : 200), text);
        if (lora && negative)
            return error_set(err, "negative prompt: %.*s: adapters have no effect here; move it to the prompt",
                             (int)(length < 200 ? length : 200), text);
        if (lora && !parse_lora(p, text + 6, length - 7, text, length, err)) return false;
        if (!lora) {
            length = 1;
            buffer_add(out, text, 1);
        }
        text += length;
    }
    return true;
}

static bool contains_and(const char *text) {
    for (const char *at = text; (at = strstr(at, "AND")); at += 3) {
        if ((at == text || !is_word(at[-1])) && !is_word(at[3])) return true;
    }
    return false;
}

/* --- texts that change over the steps --- */

typedef struct editor {
    const char *text;
    const size_t *match; /* per '[': the index of its ']' when what is between is balanced, else 0 */
    int steps;
    int step;    /* 1-based as webui counts: a stage that ends at E is what the text is in step E */
    bool *ends;  /* [steps + 1], collecting: where stages end; NULL when resolving */
    buffer *out; /* resolving */
} editor;

/* Pairs brackets. A '[' whose inside has a round bracket without its partner stays without one, as text. */
static size_t *match_brackets(const char *text, size_t length) {
    size_t *match = memory_new(length + 1, sizeof *match), *stack = memory_new(length + 1, sizeof *stack), depth = 0, squares = 0;
    bool *spoilt = memory_new(length + 1, sizeof *spoilt);
    for (size_t i = 0; i < length; i++) {
        char c = text[i], top = depth ? text[stack[depth - 1]] : 0;
        if (c == '\\') {
            i++;
        } else if (c == '(' || c == '[') {
            stack[depth++] = i;
            squares += c == '[';
        } else if (c == ')' && top == '(') {
            depth--;
        } else if (c == ')' && top == '[') {
            spoilt[stack[depth - 1]] = true;
        } else if (c == ']' && squares) {
            bool clean = top == '[';
            while (text[stack[depth - 1]] != '[') depth--;
            size_t open = stack[--depth];
            squares--;
            if (clean && !spoilt[open]) match[open] = i;
        }
    }
    free(stack);
    free(spoilt);
    return match;
}

/* What stands between two matching square brackets. */
typedef struct bracket {
    enum { BRACKET_EMPHASIS, BRACKET_EDIT, BRACKET_ALTERNATE } kind;
    size_t
        colons[2]; /* BRACKET_EDIT: colons[1] stands before the number; before:after are parted by colons[0], which is 0 without `before` */
    double when;
    bool share; /* `when` has a point: a share of the steps */
} bracket;

/* An optional sign and a decimal number with white space around it. */
static bool read_when(const char *text, size_t length, double *when, bool *share) {
    char copy[48], *end;
    while (length && isspace((unsigned char)*text)) text++, length--;
    while (length && isspace((unsigned char)text[length - 1])) length--;
    if (length == 0 || length >= sizeof copy) return false;
    memcpy(copy, text, length);
    copy[length] = 0;
    if (strspn(copy, "+-.0123456789eE") != length) return false;
    *when = strtod(copy, &end);
    *share = strchr(copy, '.') != NULL;
    return end != copy && *end == 0 && isfinite(*when);
}

static bracket bracket_at(const editor *e, size_t open) {
    bracket b = {.kind = BRACKET_EMPHASIS};
    int depth = 0, colons = 0, bars = 0;
    size_t close = e->match[open];
    for (size_t i = open + 1; i < close; i++) {
        char c = e->text[i];
        if (c == '\\') i++;
        depth += (c == '(' || c == '[') - (c == ')' || c == ']');
        if (depth == 0 && c == '|') bars++;
        if (depth == 0 && c == ':') {
            colons++;
            b.colons[0] = b.colons[1];
            b.colons[1] = i;
        }
    }
    if (bars && !colons) b.kind = BRACKET_ALTERNATE;
    if ((colons == 1 || colons == 2) && read_when(e->text + b.colons[1] + 1, close - b.colons[1] - 1, &b.when, &b.share))
        b.kind = BRACKET_EDIT;
    return b;
}

static bool edit_range(const editor *e, size_t from, size_t to, int nesting, error *err);

static bool edit_bracket(const editor *e, size_t open, const bracket *b, int nesting, error *err) {
    double value = b->share ? b->when * e->steps : b->when;
    int when = value >= e->steps ? e->steps : value <= 0 ? 0 : (int)value;
    size_t before = open + 1, before_end = b->colons[0] ? b->colons[0] : before;
    size_t after = b->colons[0] ? b->colons[0] + 1 : before;
    if (e->ends) {
        if (when >= 1) e->ends[when] = true;
        return edit_range(e, before, before_end, nesting, err) && edit_range(e, after, b->colons[1], nesting, err);
    }
    return e->step <= when ? edit_range(e, before, before_end, nesting, err) : edit_range(e, after, b->colons[1], nesting, err);
}

/* The next | at from or later that parts the options of this bracket, else `close`. */
static size_t next_bar(const editor *e, size_t from, size_t close) {
    int depth = 0;
    size_t i = from;
    for (; i < close && (depth > 0 || e->text[i] != '|'); i++) {
        char c = e->text[i];
        if (c == '\\') i++;
        depth += (c == '(' || c == '[') - (c == ')' || c == ']');
    }
    return i < close ? i : close;
}

static bool edit_alternate(const editor *e, size_t open, int nesting, error *err) {
    size_t close = e->match[open], start = open + 1;
    int options = 1, index = 0;
    for (size_t bar = next_bar(e, start, close); bar < close; bar = next_bar(e, bar + 1, close)) options++;
    for (; start <= close; index++) {
        size_t stop = next_bar(e, start, close);
        if ((e->ends || index == (e->step - 1) % options) && !edit_range(e, start, stop, nesting, err)) return false;
        start = stop + 1;
    }
    for (int i = 1; e->ends && i <= e->steps; i++) e->ends[i] = true;
    return true;
}

/* Collects the stages' ends in text[from..to), or writes that text as it is in the step. */
static bool edit_range(const editor *e, size_t from, size_t to, int nesting, error *err) {
    if (nesting > MAX_NESTING) return error_set(err, "prompt: [a:b:0.5] nested more than %d deep; take some brackets away", MAX_NESTING);
    size_t plain = from;
    for (size_t i = from; i < to; i++) {
        if (e->text[i] == '\\') {
            i++;
            continue;
        }
        if (e->text[i] != '[' || !e->match[i]) continue;
        bracket b = bracket_at(e, i);
        if (b.kind == BRACKET_EMPHASIS) continue;
        if (e->out) buffer_add(e->out, e->text + plain, i - plain);
        bool done = b.kind == BRACKET_EDIT ? edit_bracket(e, i, &b, nesting + 1, err) : edit_alternate(e, i, nesting + 1, err);
        if (!done) return false;
        i = e->match[i];
        plain = i + 1;
    }
    if (e->out && plain < to) buffer_add(e->out, e->text + plain, to - plain);
    return true;
}

static void add_stage(prompt_plan *p, buffer *text, int last_step) {
    prompt_stage *before = p->stage_count ? &p->stages[p->stage_count - 1] : NULL;
    if (before && strcmp(before->text, text->text) == 0) {
        before->last_step = last_step;
        free(text->text);
        return;
    }
    p->stages = memory_grow(p->stages, (size_t)p->stage_count + 1, sizeof *p->stages);
    p->stages[p->stage_count++] = (prompt_stage){text->text, last_step};
}

static bool lay_out_stages(prompt_plan *p, const char *text, size_t length, int steps, error *err) {
    bool *ends = memory_new((size_t)steps + 1, sizeof *ends), good;
    size_t *match = match_brackets(text, length);
    editor e = {.text = text, .match = match, .steps = steps, .ends = ends};
    good = edit_range(&e, 0, length, 0, err);
    e.ends = NULL;
    ends[steps] = true;
    for (e.step = 1; e.step <= steps && good; e.step++) {
        if (!ends[e.step]) continue;
        buffer out = {0};
        buffer_add(&out, "", 0);
        e.out = &out;
        good = edit_range(&e, 0, length, 0, err);
        add_stage(p, &out, e.step);
    }
    free(match);
    free(ends);
    return good;
}

bool prompt_parse(prompt_plan *p, const char *text, int steps, bool negative, error *err) {
    memset(p, 0, sizeof *p);
    if (steps < 1) return error_set(err, "prompt: %d sampling steps; give at least 1", steps);
    if (strlen(text) > MAX_LENGTH) return error_set(err, "prompt: longer than %d bytes; shorten it", MAX_LENGTH);
    buffer plain = {0};
    buffer_add(&plain, "", 0);
    bool good = take_loras(p, text, negative, &plain, err);
    if (good && !negative && contains_and(plain.text))
        good =
            error_set(err, "prompt: AND (several prompts in one picture) is not supported; join the parts with a comma, or write \"and\"");
    good = good && lay_out_stages(p, plain.text, plain.length, steps, err);
    free(plain.text);
    if (!good) prompt_free(p);
    return good;
}

void prompt_free(prompt_plan *p) {
    for (int i = 0; i < p->lora_count; i++) {
        free(p->loras[i].name);
        free(p->loras[i].blocks);
    }
    for (int i = 0; i < p->stage_count; i++) free(p->stages[i].text);
    free(p->loras);
    free(p->stages);
    memset(p, 0, sizeof *p);
}

int prompt_stage_at(const prompt_plan *p, int i) {
    int stage = 0;
    while (stage < p->stage_count - 1 && p->stages[stage].last_step < i) stage++;
    return stage;
}
