/* CLIP's vocabulary from the embedded merges, numbered as in OpenAI's CLIP (simple_tokenizer.py). */
#include "base/memory.h"
#include "text_encoder/bpe_builtin.h"
#include "text_encoder/bpe_table.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#define CLIP_MERGES (49152 - 256 - 2)

/* The first `lines` lines of the gzip stream, zero-terminated; NULL if there are fewer. */
static char *head_lines(size_t lines, error *err) {
    size_t room = 1 << 20, used = 0, seen = 0;
    char *text = memory_new(room + 1, 1);
    z_stream stream = {.next_in = (unsigned char *)(uintptr_t)bpe_builtin, .avail_in = (unsigned)bpe_builtin_size};
    int status = inflateInit2(&stream, 16 + MAX_WBITS);
    while (status == Z_OK && seen < lines && used < room) {
        stream.next_out = (unsigned char *)text + used;
        stream.avail_out = (unsigned)(room - used < 4096 ? room - used : 4096);
        size_t before = used;
        status = inflate(&stream, Z_NO_FLUSH);
        used = (size_t)((char *)stream.next_out - text);
        for (size_t i = before; i < used && seen < lines; i++)
            if (text[i] == '\n' && ++seen == lines) used = i + 1;
    }
    inflateEnd(&stream);
    if (seen == lines) {
        text[used] = 0;
        return text;
    }
    free(text);
    error_set(err, "the program's own BPE merges are damaged; build it again");
    return NULL;
}

/* Ids 0..255 are the bytes in the order printable ones first, 256..511 the same at a word's end. */
static void put_bytes(bpe_texts *texts) {
    for (int end = 0, id = 0; end < 2; end++)
        for (int pass = 0; pass < 2; pass++)
            for (int byte = 0; byte < 256; byte++) {
                if (bpe_byte_printable((uint8_t)byte) != (pass == 0)) continue;
                char text[2 + 4];
                size_t size = bpe_byte_text((uint8_t)byte, text);
                if (end) memcpy(text + size, "</w>", 4);
                bpe_texts_put(texts, text, size + (end ? 4 : 0), id++);
            }
}

static bool read_merges(bpe_vocabulary *vocabulary, bpe_texts *texts, const char *line, error *err) {
    bpe_merges_reserve(vocabulary, CLIP_MERGES);
    for (int i = 0; i < CLIP_MERGES; i++) {
        const char *stop = strchr(line, '\n'), *gap = memchr(line, ' ', (size_t)(stop - line));
        if (!gap) return error_set(err, "the program's own BPE merges are damaged; build it again");
        size_t left = (size_t)(gap - line), right = (size_t)(stop - gap - 1);
        char joined[512];
        if (left + right > sizeof joined) return error_set(err, "the program's own BPE merges are damaged; build it again");
        memcpy(joined, line, left);
        memcpy(joined + left, gap + 1, right);
        bpe_texts_put(texts, joined, left + right, 512 + i);
        if (!bpe_merges_add(vocabulary, texts, line, left, gap + 1, right, (uint32_t)i, err)) return false;
        line = stop + 1;
    }
    return true;
}

bool bpe_vocabulary_builtin(bpe_vocabulary *vocabulary, error *err) {
    *vocabulary = (bpe_vocabulary){0};
    char *text = head_lines(1 + CLIP_MERGES, err); /* a comment, then the merges */
    if (!text) return false;
    bpe_texts texts = {0};
    put_bytes(&texts);
    bool ok = read_merges(vocabulary, &texts, strchr(text, '\n') + 1, err);
    if (ok) {
        bpe_bytes_fill(vocabulary, &texts);
        vocabulary->start = 512 + CLIP_MERGES;
        vocabulary->end = vocabulary->pad = vocabulary->unknown = vocabulary->start + 1;
        vocabulary->count = vocabulary->end + 1;
        bpe_special_add(vocabulary, "<|startoftext|>", vocabulary->start, false);
        bpe_special_add(vocabulary, "<|endoftext|>", vocabulary->end, false);
    } else {
        bpe_vocabulary_free(vocabulary);
    }
    bpe_texts_free(&texts);
    free(text);
    return ok;
}
