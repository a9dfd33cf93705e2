/* The command line. One table (options_table.c) holds every option: name, aliases, type, range, default, commands, help.
   Parsing, help pages and the tests walk it. */
#ifndef VULORA_CLI_OPTIONS_H
#define VULORA_CLI_OPTIONS_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum {
    COMMAND_TRAIN = 1 << 0,
    COMMAND_GENERATE = 1 << 1,
    COMMAND_PROBE = 1 << 2,
    COMMAND_INSPECT = 1 << 3,
    COMMAND_DEVICES = 1 << 4,
    COMMAND_BENCH = 1 << 5,
    COMMAND_CONVERT = 1 << 6,
    COMMAND_MERGE = 1 << 7,
    COMMAND_EXTRACT = 1 << 8,
    COMMAND_GRID = 1 << 9,
    COMMAND_ALL = (1 << 10) - 1
};

typedef struct options options;

/* One row of the command table. */
typedef struct command {
    const char *name, *aliases; /* aliases: separated by blanks, or NULL */
    unsigned bit;
    const char *words; /* usage of what follows the name besides options */
    int words_least, words_most;
    const char *help;
    int (*run)(const options *o); /* returns the exit status */
} command;

/* Ends with a row without a name. */
extern const command command_table[];
const command *command_find(const char *name);

typedef enum option_type {
    OPTION_SWITCH, /* int: 1, with --no-NAME 0; -1 when not given and without a default */
    OPTION_INT,    /* int64_t */
    OPTION_REAL,   /* double */
    OPTION_TEXT,   /* const char *, may be empty */
    OPTION_FILE,   /* const char *, not empty */
    OPTION_CHOICE, /* const char *: the canonical name */
    OPTION_SIZE,   /* options_size, from WxH or one number */
    OPTION_LIST,   /* options_list: may be given several times; with `several` as many words as follow */
    OPTION_NOTED,  /* accepted for the sake of saved command lines, without effect */
    OPTION_REFUSED /* known elsewhere; `help` says what to use instead */
} option_type;

typedef struct option_choice {
    const char *name, *aliases; /* aliases: separated by '|', or NULL */
} option_choice;

typedef struct option {
    const char *name, *aliases; /* with '-'; aliases separated by blanks, or NULL */
    option_type type;
    unsigned commands;
    size_t offset; /* in struct options */
    double low, high;
    int multiple;                                 /* of which an int or a size must be a multiple; 0: any */
    const option_choice *choices;                 /* ends with a row without a name; or, of a table that another room keeps: */
    const char *(*choice_at)(int index);          /* names in order, NULL behind the last */
    const char *(*choice_find)(const char *text); /* the name that is meant, or NULL */
    const char *fallback;                         /* default as the user would type it; NULL: not set */
    const char *value; /* how help names the value: N, FILE, WxH; of OPTION_NOTED: not NULL when it takes a value */
    const char *group;
    const char *help;
    bool several; /* of OPTION_LIST */
} option;

/* Ends with a row without a name. */
extern const option option_table[];

typedef struct options_list {
    const char **item;
    int count;
} options_list;

typedef struct options_size {
    int width, height;
} options_size;

/* What a command line says. Strings point into argv or the table. */
struct options {
    const command *command;
    options_list words;     /* FILE..., PART: what is no option */
    options_list noted;     /* options accepted without effect */
    options_list remarks;   /* what the user should know about what was understood; texts that stay */
    const char *given[256]; /* by row of the table: the text given, NULL: not given */

    int help, quiet, verbose, json;
    const char *device, *precision, *cpu_kernels;
    double memory_limit; /* GiB */
    int64_t threads, seed;

    const char *model, *vae, *tokenizer, *output, *output_dir, *output_name, *input;
    options_list loras;
    const char *lora_dir;
    int64_t clip_skip;

    /* adapter */
    const char *kind, *targets;
    int64_t rank, conv_rank;
    double alpha, conv_alpha, constraint;
    double network_dropout, rank_dropout, module_dropout, max_norm;
    int64_t block_size;
    int rs_lora, use_scalar;
    const char *init;
    double loraplus, loraplus_unet, loraplus_text;
    const char *block_dims, *block_alphas, *conv_block_dims, *conv_block_alphas, *down_lr_weight, *mid_lr_weight, *up_lr_weight;
    double block_lr_zero;
    options_list module_rank, module_alpha, module_lr;
    const char *network_module;
    options_list network_args;
    int dora, tucker, decompose_both, full_matrix, rescaled, train_norm;
    int64_t factor;

    /* data */
    const char *data, *caption_extension, *trigger, *cache_dir, *background;
    int flip, bucket;
    int64_t min_bucket, max_bucket, bucket_step;
    options_size resolution;

    /* training */
    int64_t steps, epochs, batch_size, accumulation;
    double lr, unet_lr, text_encoder_lr, warmup, max_grad_norm, weight_decay;
    const char *optimizer, *scheduler;
    int unet_only, checkpointing;
    int64_t save_every_steps, save_every_epochs;
    const char *save_precision, *comment;
    int metadata;
    const char *sample_prompts;
    int64_t sample_every_steps, sample_every_epochs;
    int resume, dry_run;
    const char *trace;
    int64_t trace_tensors;

    /* pictures */
    const char *prompt, *negative, *sampler, *schedule, *noise;
    double cfg;
    int64_t width, height, batch;
    options_list prompts; /* of a grid */
    const char *strengths;
    int bare;

    /* adapters rewritten */
    const char *format, *dtype, *dynamic;
    double dynamic_param;
    int64_t cut_rank;

    /* adapters from models */
    const char *tuned, *into;
    double energy, clamp_quantile, min_diff;

    /* what a file says about itself */
    const char *title, *description, *notes, *author, *license, *tags, *preview;
    options_list set;
    int strip_metadata, side_files;
    double preferred_weight;

    /* bench */
    const char *part;
    int64_t repeats;
};

/* Fills o with the defaults of `c`, then reads the arguments behind the command's name. False: wrong usage, the error says what. */
bool options_parse(options *o, const command *c, int argc, char **argv, error *err);
void options_free(options *o);

/* Whether the option was on the command line (under any of its names). */
bool options_given(const options *o, const char *name);
/* Its text as typed; NULL when not given. */
const char *options_text(const options *o, const char *name);

/* Sets an option as if it had been given; value as typed (of a switch 1 or 0), which must stay. what: names it in messages. */
bool options_set(options *o, const char *what, const char *name, const char *value, error *err);
void options_list_add(options_list *list, const char *text);

/* Row of an option by any name or alias, without dashes, '_' equal to '-'. `commands`: rows of these commands go first. NULL: unknown. */
const option *option_find(const char *name, unsigned commands);
bool option_name_equal(const char *a, const char *b);

/* Whole text as a number in range; `what` names option and text in the message. */
bool option_read_int(const char *what, const char *text, double low, double high, int multiple, int64_t *out, error *err);
bool option_read_real(const char *what, const char *text, double low, double high, double *out, error *err);

/* Help pages. */
void options_print_overview(FILE *out);
void options_print_help(FILE *out, const command *c);

/* Calls back with each name of a list separated by `separator`; stops at true, which it returns. */
bool option_each_name(const char *names, char separator, bool (*visit)(void *user, const char *name), void *user);

#endif
