#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

bool error_set(error *err, const char *format, ...) {
    if (err) {
        va_list args;
        va_start(args, format);
        vsnprintf(err->text, sizeof err->text, format, args);
        va_end(args);
    }
    return false;
}

bool error_prefix(error *err, const char *format, ...) {
    if (err) {
        char old[sizeof err->text];
        memcpy(old, err->text, sizeof old);
        va_list args;
        va_start(args, format);
        int used = vsnprintf(err->text, sizeof err->text, format, args);
        va_end(args);
        int room = (int)sizeof err->text - used - 3; /* ": " and the end */
        if (used >= 0 && room > 0) snprintf(err->text + used, (size_t)room + 3, ": %.*s", room, old);
    }
    return false;
}
