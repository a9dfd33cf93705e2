/* What the program says while it works: lines on stderr, a progress line that rewrites itself on a terminal, Ctrl-C as a flag. */
#ifndef VULORA_CLI_TERMINAL_H
#define VULORA_CLI_TERMINAL_H

#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>

/* EXIT_VALIDATION: for developers, who run with VULORA_VK_VALIDATE=1. */
enum { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_VALIDATION = 3, EXIT_INTERRUPTED = 130 };

void terminal_setup(bool quiet, bool verbose);
bool terminal_verbose(void);

/* One line on stderr, without the newline. say: not when quiet. detail: only when verbose. warn: also when quiet. */
void terminal_say(const char *format, ...) __attribute__((format(printf, 1, 2)));
void terminal_detail(const char *format, ...) __attribute__((format(printf, 1, 2)));
void terminal_warn(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* "vulora: text" on stderr; return EXIT_FAILED and EXIT_USAGE. */
int terminal_fail(const error *err);
int terminal_refuse(const error *err);

/* Flushes stdout; false, with a message, when it could not be written (a full disk, a closed pipe). */
bool terminal_flush_results(void);

/* How far a piece of work is. On a terminal one line is rewritten, elsewhere a line comes every few seconds. */
typedef struct progress {
    const char *what; /* "step" */
    int64_t total, done, first;
    double started, shown;
    bool visible; /* a rewritten line is on screen */
} progress;

/* first: how much was done before (a resumed training). */
void progress_begin(progress *p, const char *what, int64_t first, int64_t total);
/* detail: what stands behind the count ("loss 0.1234"), or NULL. */
void progress_update(progress *p, int64_t done, const char *detail);
/* Ends the line, so that other text can follow. */
void progress_end(progress *p);

/* Seconds on a clock that never jumps. */
double terminal_clock(void);
/* "1:02:03", "2:03" */
const char *terminal_duration(double seconds, char out[24]);
/* "1.52 GiB", "31.2 MiB" */
const char *terminal_bytes(uint64_t bytes, char out[24]);

/* From here on the first Ctrl-C (or SIGTERM) sets a flag, the second ends the program. */
void interrupt_catch(void);
bool interrupt_requested(void);

#endif
