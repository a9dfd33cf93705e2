/* Temporary folders for tests: made in /tmp, filled by one-line calls, removed with everything in them. */
#ifndef VULORA_TESTS_SUPPORT_FOLDER_H
#define VULORA_TESTS_SUPPORT_FOLDER_H

#include <stdbool.h>
#include <stddef.h>

/* A new folder whose name begins so; freed by folder_remove. */
char *folder_make(const char *name);
void folder_remove(char *folder);

/* Writes a file, making the folders in `name` (at most two deep). */
void folder_write(const char *folder, const char *name, const void *data, size_t size);
void folder_text(const char *folder, const char *name, const char *text);
/* A copy of a picture of tests/fixtures/images. */
void folder_picture(const char *folder, const char *name, const char *fixture);

/* How many entries it has that are not hidden: nothing half-written may be left. */
int folder_count(const char *folder);

/* A folder to run the program in: also the working directory and HOME, readable for everybody. NULL if that failed. */
char *folder_enter(const char *name);
/* Back to /, and removes it. 0, as cmocka's fixtures return. */
int folder_leave(char *folder);

#endif
