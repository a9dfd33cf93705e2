/* The driver's pipeline cache, kept on disk: one file per device and driver in the user's cache folder. */
#include "vulkan/internal.h"

#include "base/file.h"
#include "base/memory.h"
#include "base/sha256.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { CACHE_LIMIT_BYTES = 256 << 20 };

/* The file: the SHA-256 of the driver's data as hex digits, then that data. Drivers check their own header, but some of them trust the rest
   blindly, so a damaged file must never reach them. */
static void digest(const void *data, size_t size, char out[GPU_DIGEST_BYTES + 1]) {
    sha256 hash;
    sha256_init(&hash);
    sha256_update(&hash, data, size);
    sha256_hex(&hash, out);
}

static char *cache_folder(void) {
    const char *base = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    char *parent = base && *base == '/' ? memory_string(base) : home && *home == '/' ? memory_format("%s/.cache", home) : NULL;
    if (!parent) return NULL;
    char *folder = memory_format("%s/vulora", parent);
    bool there = (mkdir(parent, 0700) == 0 || errno == EEXIST) && (mkdir(folder, 0700) == 0 || errno == EEXIST);
    free(parent);
    if (there) return folder;
    free(folder);
    return NULL;
}

static char *cache_path(const VkPhysicalDeviceProperties *p) {
    char *folder = cache_folder();
    if (!folder) return NULL;
    char uuid[2 * VK_UUID_SIZE + 1];
    for (size_t i = 0; i < VK_UUID_SIZE; i++) snprintf(uuid + 2 * i, 3, "%02x", p->pipelineCacheUUID[i]);
    char *path = memory_format("%s/pipelines-%04x-%04x-%08x-%s.bin", folder, p->vendorID, p->deviceID, p->driverVersion, uuid);
    free(folder);
    return path;
}

/* The driver's data out of an intact file for this device and driver, or NULL. */
static const char *cache_data(const char *text, size_t size, const VkPhysicalDeviceProperties *p, size_t *data_size) {
    VkPipelineCacheHeaderVersionOne header;
    if (size < GPU_DIGEST_BYTES + sizeof header) return NULL;
    const char *data = text + GPU_DIGEST_BYTES;
    char want[GPU_DIGEST_BYTES + 1];
    digest(data, size - GPU_DIGEST_BYTES, want);
    memcpy(&header, data, sizeof header);
    bool ours = memcmp(want, text, GPU_DIGEST_BYTES) == 0 && header.headerVersion == VK_PIPELINE_CACHE_HEADER_VERSION_ONE &&
                header.vendorID == p->vendorID && header.deviceID == p->deviceID &&
                memcmp(header.pipelineCacheUUID, p->pipelineCacheUUID, VK_UUID_SIZE) == 0;
    *data_size = size - GPU_DIGEST_BYTES;
    return ours ? data : NULL;
}

/* A cache with what the file holds, or an empty one. */
static VkResult cache_read(gpu *g, VkPipelineCache *out) {
    VkPhysicalDeviceProperties2 properties = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2};
    g->instance->vkGetPhysicalDeviceProperties2(g->physical, &properties);
    if (!g->cache_path) g->cache_path = cache_path(&properties.properties);
    size_t size = 0;
    char *text = g->cache_path && file_exists(g->cache_path) ? file_read_text(g->cache_path, CACHE_LIMIT_BYTES, &size, NULL) : NULL;
    VkPipelineCacheCreateInfo info = {.sType = VK_STRUCTURE_TYPE_PIPELINE_CACHE_CREATE_INFO};
    if (text) info.pInitialData = cache_data(text, size, &properties.properties, &info.initialDataSize);
    if (!info.pInitialData) info.initialDataSize = 0;
    if (info.pInitialData) memcpy(g->cache_digest, text, GPU_DIGEST_BYTES);
    g->cache_bytes = info.initialDataSize;
    VkResult result = g->vk.vkCreatePipelineCache(g->device, &info, NULL, out);
    free(text);
    return result;
}

VkResult gpu_cache_open(gpu *g) { return cache_read(g, &g->cache); }

/* What another process has put into the file since. */
static void merge_file(gpu *g) {
    char now[GPU_DIGEST_BYTES] = "";
    FILE *file = fopen(g->cache_path, "rb");
    bool changed = file && fread(now, 1, sizeof now, file) == sizeof now && memcmp(now, g->cache_digest, sizeof now) != 0;
    if (file) fclose(file);
    VkPipelineCache other = VK_NULL_HANDLE;
    if (changed && cache_read(g, &other) == VK_SUCCESS) g->vk.vkMergePipelineCaches(g->device, g->cache, 1, &other);
    g->vk.vkDestroyPipelineCache(g->device, other, NULL);
}

/* A cache that cannot be written costs time at the next start, nothing else: no error. The file is replaced whole, so that a second process
   reads the one or the other. */
void gpu_cache_save(gpu *g) {
    size_t size = 0;
    if (!g->cache || !g->cache_path || !gpu_usable(g)) return;
    if (g->vk.vkGetPipelineCacheData(g->device, g->cache, &size, NULL) != VK_SUCCESS || size == g->cache_bytes) return;
    merge_file(g);
    if (g->vk.vkGetPipelineCacheData(g->device, g->cache, &size, NULL) != VK_SUCCESS || size == g->cache_bytes) return;
    char *text = memory_try_aligned(GPU_DIGEST_BYTES + size);
    if (text && g->vk.vkGetPipelineCacheData(g->device, g->cache, &size, text + GPU_DIGEST_BYTES) == VK_SUCCESS) {
        char hex[GPU_DIGEST_BYTES + 1];
        digest(text + GPU_DIGEST_BYTES, size, hex);
        memcpy(text, hex, GPU_DIGEST_BYTES);
        memcpy(g->cache_digest, hex, GPU_DIGEST_BYTES);
        g->cache_bytes = size; /* also when it cannot be written: the next attempt would fail, too */
        file_write_all(g->cache_path, text, GPU_DIGEST_BYTES + size, NULL);
    }
    free(text);
}

void gpu_cache_close(gpu *g) {
    g->vk.vkDestroyPipelineCache(g->device, g->cache, NULL);
    free(g->cache_path);
}
