/* Rewriting an adapter: another spelling or number type, a LoRA of a given rank, or the full difference. What it does at strength 1 is
   kept. */
#ifndef VULORA_CONVERT_CONVERT_H
#define VULORA_CONVERT_CONVERT_H

#include "convert/report.h"
#include "convert/spell.h"

typedef enum target_kind { TARGET_SAME, TARGET_LORA, TARGET_FULL } target_kind;

typedef struct convert_options {
    const char *model; /* or NULL */
    spell_format format;
    dtype type; /* DTYPE_COUNT: as in the source; new numbers that would not fit get fp32 */
    target_kind kind;
    rank_choice rank; /* most 0 and RANK_FIXED: none is asked for. With TARGET_SAME LoRAs are resized, other kinds refused */
    int64_t cut_rank; /* of DyLoRA: 0: all */
    int threads;
    void (*progress)(void *user, int64_t done, int64_t total); /* modules; NULL: nobody wants to know */
    void *user;
    const struct metadata_edits *edits; /* of convert/metadata.h; NULL: none */
} convert_options;

/* Reads IN, any file or folder that lora/file.h opens, writes OUT. Errors name the file and the module. report: zeroed, filled. */
bool convert_adapter(const char *in, const char *out, const convert_options *o, convert_report *report, error *err);

/* One module of a source into the draft, as the options want it; the error has no file in it yet. Shared with merging. */
bool convert_change(draft *d, const module_info *info, change *c, const convert_options *o, dtype type, convert_report *report, error *err);

#endif
