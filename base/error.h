/* Errors: one line a user can act on. Library code fills an error and returns false; it never prints and never exits. */
#ifndef VULORA_BASE_ERROR_H
#define VULORA_BASE_ERROR_H

#include <stdbool.h>

typedef struct error {
    char text[1024];
} error;

/* Sets the text (what failed, which file or option, the way out) and returns false, so that callers write
   `return error_set(err, ...)`. A NULL err is allowed. */
bool error_set(error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Puts context in front of the text already there: "FILE: old text". Returns false. */
bool error_prefix(error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
