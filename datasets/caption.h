/* Caption texts. */
#ifndef VULORA_DATASETS_CAPTION_H
#define VULORA_DATASETS_CAPTION_H

#include "base/error.h"

/* A caption file: UTF-8 with or without a byte order mark, any line ends. Gives its first line that is not empty, without white space
   at both ends (sd-scripts, too, takes one line), "" if there is none; freed by the caller, NULL on error. `more` is set to whether
   further text follows. Bad UTF-8 is an error that names file and byte. */
char *caption_read(const char *path, bool *more, error *err);

/* A copy without white space (Unicode's) at both ends; `what` names it in the error when it is not UTF-8. */
char *caption_trim(const char *text, const char *what, error *err);

#endif
