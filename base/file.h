/* Files: read-only mappings, and writing that never leaves a half-written or lost file. */
#ifndef VULORA_BASE_FILE_H
#define VULORA_BASE_FILE_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* A whole file mapped read-only. */
typedef struct file_map {
    const uint8_t *data;
    size_t size;
} file_map;

bool file_map_open(file_map *map, const char *path, error *err);
void file_map_close(file_map *map);

/* Pages of a mapping that were read and will not be needed soon: memory gives them back, the next read brings them again. */
void file_map_forget(const void *data, size_t size);

/* A file under a temporary name beside `path`; commit flushes it to disk and renames it onto `path`, discard removes it.
   Until commit, what stood at `path` is untouched. */
typedef struct file_writer {
    FILE *stream;
    char *path, *temporary;
} file_writer;

bool file_writer_open(file_writer *writer, const char *path, error *err);
bool file_writer_write(file_writer *writer, const void *data, size_t size, error *err);
bool file_writer_commit(file_writer *writer, error *err); /* on failure the temporary file is removed */
void file_writer_discard(file_writer *writer);

bool file_write_all(const char *path, const void *data, size_t size, error *err);

/* The whole file and a zero behind it, freed by the caller; NULL on error. Refuses files over `limit` bytes. */
char *file_read_text(const char *path, size_t limit, size_t *size, error *err);

bool file_exists(const char *path);
bool file_is_directory(const char *path);

/* Checks before any work that a file can be written there: not a folder, folder there and writable. `what` names the option in the message.
 */
bool file_check_output(const char *path, const char *what, error *err);

#endif
