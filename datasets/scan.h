/* Finding the pictures of a data folder: layouts, repeats, junk. */
#ifndef VULORA_DATASETS_SCAN_H
#define VULORA_DATASETS_SCAN_H

#include "base/error.h"

#include <stddef.h>

#define SCAN_PICTURE_EXTENSIONS ".png, .jpg, .jpeg, .webp, .bmp"

typedef struct scan_picture {
    char *path;
    char *name; /* of "N_name"; NULL: the folder says nothing */
    int repeats;
} scan_picture;

typedef struct scan_result {
    scan_picture *pictures;
    size_t count;
    char **captions; /* paths of caption files met on the way */
    size_t caption_count;
    size_t junk, foreign;
    char **notes;
    size_t note_count;
} scan_result;

/* `extension`: of captions, with its dot; NULL: .txt and .caption. No picture at all is an error. */
bool scan_folder(const char *folder, const char *extension, scan_result *out, error *err);
void scan_free(scan_result *result);

void scan_note(scan_result *result, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* "10_sks dog" -> 10 and the place of "sks dog"; false if the name is not of that form. */
bool scan_parse_name(const char *folder_name, int *repeats, const char **name);

/* The place of the last dot of a path's file name, or its end. */
size_t scan_stem(const char *path);

#endif
