/* What earlier runs left behind and this one replaces: temporary files of killed ones, tensors of an older trace. */
#include "base/memory.h"
#include "train/internal.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void remove_where(const char *folder, bool (*wanted)(const char *name, const char *stem), const char *stem) {
    DIR *dir = opendir(folder);
    for (const struct dirent *entry; dir && (entry = readdir(dir)) != NULL;) {
        if (!wanted(entry->d_name, stem)) continue;
        char *path = memory_format("%s/%s", folder, entry->d_name);
        unlink(path);
        free(path);
    }
    if (dir) closedir(dir);
}

/* "me.safetensors.tmp-123", "me-step00000010.safetensors.tmp-123", "me.state.safetensors.tmp-123" (base/file.c), if no process 123 runs. */
static bool is_orphan(const char *name, const char *stem) {
    static const char marker[] = ".safetensors.tmp-";
    const char *at = strstr(name, marker);
    if (!at || strncmp(name, stem, strlen(stem)) != 0 || (size_t)(at - name) < strlen(stem)) return false;
    char *end;
    long id = strtol(at + strlen(marker), &end, 10);
    return id > 0 && !*end && (id == (long)getpid() || (kill((pid_t)id, 0) != 0 && errno == ESRCH));
}

void train_remove_orphans(const char *output) {
    char *folder = memory_string(output), *slash = strrchr(folder, '/');
    const char *name = slash ? slash + 1 : folder;
    char *stem = memory_string(name), *ending = strrchr(stem, '.');
    if (ending) *ending = 0;
    if (slash) slash[slash == folder] = 0;
    remove_where(slash ? folder : ".", is_orphan, stem);
    free(stem);
    free(folder);
}

/* "step-000001.safetensors" */
static bool is_step(const char *name, const char *stem) {
    (void)stem;
    size_t digits = strncmp(name, "step-", 5) == 0 ? strspn(name + 5, "0123456789") : 0;
    return digits >= 6 && strcmp(name + 5 + digits, ".safetensors") == 0;
}

void train_remove_old_tensors(const char *trace_folder) { remove_where(trace_folder, is_step, NULL); }
