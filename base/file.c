#define _DEFAULT_SOURCE /* madvise */
#include "base/file.h"

#include "base/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

bool file_map_open(file_map *map, const char *path, error *err) {
    *map = (file_map){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return error_set(err, "%s: cannot open: %s", path, strerror(errno));
    struct stat info;
    bool ok = true;
    if (fstat(fd, &info) != 0)
        ok = error_set(err, "%s: cannot read: %s", path, strerror(errno));
    else if (S_ISDIR(info.st_mode))
        ok = error_set(err, "%s: is a folder, a file is needed", path);
    else if (!S_ISREG(info.st_mode))
        ok = error_set(err, "%s: is not a regular file", path);
    if (ok && info.st_size > 0) {
        void *data = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (data == MAP_FAILED)
            ok = error_set(err, "%s: cannot map into memory: %s", path, strerror(errno));
        else
            *map = (file_map){data, (size_t)info.st_size};
    }
    close(fd);
    return ok;
}

void file_map_close(file_map *map) {
    if (map->data) munmap((void *)(uintptr_t)map->data, map->size);
    *map = (file_map){0};
}

void file_map_forget(const void *data, size_t size) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), first = ((uintptr_t)data + page - 1) / page * page,
              end = ((uintptr_t)data + size) / page * page;
    if (end > first) madvise((void *)first, end - first, MADV_DONTNEED);
}

bool file_writer_open(file_writer *writer, const char *path, error *err) {
    *writer = (file_writer){0};
    if (!file_check_output(path, path, err)) return false;
    writer->path = memory_string(path);
    writer->temporary = memory_format("%s.tmp-%ld", path, (long)getpid());
    writer->stream = fopen(writer->temporary, "wb");
    if (writer->stream) return true;
    error_set(err, "%s: cannot write: %s", path, strerror(errno));
    file_writer_discard(writer);
    return false;
}

static bool write_failed(file_writer *writer, error *err) {
    int reason = errno ? errno : EIO;
    error_set(err, "%s: writing failed: %s; what stood there before is unchanged", writer->path, strerror(reason));
    file_writer_discard(writer);
    return false;
}

bool file_writer_write(file_writer *writer, const void *data, size_t size, error *err) {
    errno = 0;
    if (!writer->stream) return error_set(err, "writing to a file that is not open");
    return fwrite(data, 1, size, writer->stream) == size || write_failed(writer, err);
}

/* A rename is durable once its folder is flushed too. A file system that cannot flush folders is no reason to fail. */
static void flush_folder(const char *path) {
    char *folder = memory_string(path), *slash = strrchr(folder, '/');
    if (slash) slash[slash == folder] = 0;
    int fd = open(slash ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
    free(folder);
}

bool file_writer_commit(file_writer *writer, error *err) {
    errno = 0;
    if (!writer->stream) return error_set(err, "writing to a file that is not open");
    if (fflush(writer->stream) != 0 || fsync(fileno(writer->stream)) != 0) return write_failed(writer, err);
    int closed = fclose(writer->stream);
    writer->stream = NULL;
    if (closed != 0 || rename(writer->temporary, writer->path) != 0) return write_failed(writer, err);
    flush_folder(writer->path);
    free(writer->temporary);
    free(writer->path);
    *writer = (file_writer){0};
    return true;
}

void file_writer_discard(file_writer *writer) {
    if (writer->stream) fclose(writer->stream);
    if (writer->temporary) unlink(writer->temporary);
    free(writer->temporary);
    free(writer->path);
    *writer = (file_writer){0};
}

bool file_write_all(const char *path, const void *data, size_t size, error *err) {
    file_writer writer;
    return file_writer_open(&writer, path, err) && file_writer_write(&writer, data, size, err) && file_writer_commit(&writer, err);
}

char *file_read_text(const char *path, size_t limit, size_t *size, error *err) {
    file_map map;
    if (!file_map_open(&map, path, err)) return NULL;
    char *text = NULL;
    if (map.size > limit) {
        error_set(err, "%s: is %zu bytes, more than the %zu such a file may have", path, map.size, limit);
    } else {
        text = memory_new(map.size + 1, 1);
        if (map.size) memcpy(text, map.data, map.size);
        if (size) *size = map.size;
    }
    file_map_close(&map);
    return text;
}

bool file_exists(const char *path) { return access(path, F_OK) == 0; }

bool file_is_directory(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

bool file_check_output(const char *path, const char *what, error *err) {
    if (!*path) return error_set(err, "%s: is empty, a file name is needed", what);
    if (file_is_directory(path)) return error_set(err, "%s: %s is a folder; name a file in it", what, path);
    if (file_exists(path) && access(path, W_OK) != 0) return error_set(err, "%s: %s is not writable: %s", what, path, strerror(errno));
    char *folder = memory_string(path), *slash = strrchr(folder, '/');
    if (slash) slash[slash == folder] = 0;
    const char *parent = slash ? folder : ".";
    bool ok = true;
    if (!file_exists(parent))
        ok = error_set(err, "%s: the folder %s does not exist; make it first", what, parent);
    else if (!file_is_directory(parent))
        ok = error_set(err, "%s: %s is not a folder", what, parent);
    else if (access(parent, W_OK) != 0)
        ok = error_set(err, "%s: the folder %s is not writable: %s", what, parent, strerror(errno));
    free(folder);
    return ok;
}
