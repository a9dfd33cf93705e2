/* Opening the Vulkan loader and an instance, and what Vulkan's error codes mean to a user. */
#include "vulkan/internal.h"

#include <dlfcn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static atomic_int validation_messages;
static char validation_text[1024]; /* the first message */

int gpu_validation_messages(const char **first) {
    if (first) *first = validation_text;
    return atomic_load(&validation_messages);
}

static void note_message(const char *text) {
    if (atomic_fetch_add(&validation_messages, 1) == 0 && text) snprintf(validation_text, sizeof validation_text, "%s", text);
}

static VKAPI_ATTR VkBool32 VKAPI_CALL count_message(VkDebugUtilsMessageSeverityFlagBitsEXT severity, VkDebugUtilsMessageTypeFlagsEXT types,
                                                    const VkDebugUtilsMessengerCallbackDataEXT *data, void *user) {
    (void)severity, (void)types, (void)user;
    note_message(data->pMessage);
    return VK_FALSE;
}

static PFN_vkGetInstanceProcAddr open_loader(void) {
    static const char *const names[] = {"libvulkan.so.1", "libvulkan.so"};
    void *library = NULL;
    for (size_t i = 0; i < sizeof names / sizeof *names && !library; i++) library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    void *symbol = library ? dlsym(library, "vkGetInstanceProcAddr") : NULL;
    PFN_vkGetInstanceProcAddr get = NULL;
    memcpy(&get, &symbol, sizeof get); /* ISO C has no cast from void * to a function */
    return get;
}

static bool has_layer(const vulkan_instance *instance, const char *name) {
    VkLayerProperties layers[64];
    uint32_t count = 64;
    instance->vkEnumerateInstanceLayerProperties(&count, layers);
    for (uint32_t i = 0; i < count; i++)
        if (strcmp(layers[i].layerName, name) == 0) return true;
    return false;
}

static bool wants_validation(void) {
    const char *own = getenv("VULORA_VK_VALIDATE");
    return own && *own && strcmp(own, "0") != 0;
}

static void watch_messages(vulkan_instance *instance, const VkDebugUtilsMessengerCreateInfoEXT *info) {
    PFN_vkCreateDebugUtilsMessengerEXT create;
    PFN_vkVoidFunction function = instance->vkGetInstanceProcAddr(instance->handle, "vkCreateDebugUtilsMessengerEXT");
    memcpy(&create, &function, sizeof create);
    if (create) create(instance->handle, info, NULL, &instance->messenger);
}

static bool instance_open(vulkan_instance *instance) {
    instance->vkGetInstanceProcAddr = open_loader();
    if (!instance->vkGetInstanceProcAddr) return false;
#define LOAD(name) \
    instance->name = (PFN_##name)instance->vkGetInstanceProcAddr(instance->handle, #name); \
    if (!instance->name) return false;
    VULKAN_GLOBAL_FUNCTIONS(LOAD)
    uint32_t version = 0;
    if (instance->vkEnumerateInstanceVersion(&version) != VK_SUCCESS || version < VK_API_VERSION_1_2) return false;

    static const char *const layer = "VK_LAYER_KHRONOS_validation", *const debug_utils = VK_EXT_DEBUG_UTILS_EXTENSION_NAME;
    static const VkValidationFeatureEnableEXT checks[] = {VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT};
    bool validate = wants_validation();
    if (validate && !has_layer(instance, layer)) {
        note_message("the validation layer is asked for (VULORA_VK_VALIDATE) but not installed");
        validate = false;
    }
    VkValidationFeaturesEXT features = {
        .sType = VK_STRUCTURE_TYPE_VALIDATION_FEATURES_EXT, .enabledValidationFeatureCount = 1, .pEnabledValidationFeatures = checks};
    VkDebugUtilsMessengerCreateInfoEXT messages = {
        .sType = VK_STRUCTURE_TYPE_DEBUG_UTILS_MESSENGER_CREATE_INFO_EXT,
        .pNext = &features,
        .messageSeverity = VK_DEBUG_UTILS_MESSAGE_SEVERITY_WARNING_BIT_EXT | VK_DEBUG_UTILS_MESSAGE_SEVERITY_ERROR_BIT_EXT,
        .messageType = VK_DEBUG_UTILS_MESSAGE_TYPE_VALIDATION_BIT_EXT | VK_DEBUG_UTILS_MESSAGE_TYPE_PERFORMANCE_BIT_EXT,
        .pfnUserCallback = count_message};
    VkApplicationInfo application = {
        .sType = VK_STRUCTURE_TYPE_APPLICATION_INFO, .pApplicationName = "vulora", .apiVersion = VK_API_VERSION_1_2};
    VkInstanceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO, .pApplicationInfo = &application};
    if (validate) {
        info.pNext = &messages; /* also watches the making of the instance itself */
        info.enabledLayerCount = 1, info.ppEnabledLayerNames = &layer;
        info.enabledExtensionCount = 1, info.ppEnabledExtensionNames = &debug_utils;
    }
    if (instance->vkCreateInstance(&info, NULL, &instance->handle) != VK_SUCCESS) return false;
    VULKAN_INSTANCE_FUNCTIONS(LOAD)
#undef LOAD
    messages.pNext = NULL;
    if (validate) watch_messages(instance, &messages);
    return true;
}

/* One for the life of the process, never destroyed: drivers do not like being unloaded. */
const vulkan_instance *vulkan_instance_get(void) {
    static vulkan_instance instance;
    static enum { UNTRIED, OPEN, FAILED } state;
    if (state == UNTRIED) state = instance_open(&instance) ? OPEN : FAILED;
    return state == OPEN ? &instance : NULL;
}

void vulkan_load_device(const vulkan_instance *instance, VkDevice device, vulkan_functions *vk) {
#define LOAD(name) vk->name = (PFN_##name)instance->vkGetDeviceProcAddr(device, #name);
    VULKAN_DEVICE_FUNCTIONS(LOAD)
#undef LOAD
}

bool gpu_fail(const gpu *g, VkResult result, const char *what, error *err) {
    const char *device = g->info.name;
    switch (result) {
    case VK_ERROR_OUT_OF_DEVICE_MEMORY:
        return error_set(
            err, "%s: %s: out of device memory (%.1f GiB in all); use a smaller batch or resolution, or close other programs that use it",
            device, what, (double)g->info.memory_bytes / (1 << 30));
    case VK_ERROR_OUT_OF_HOST_MEMORY: return error_set(err, "%s: %s: out of main memory; close other programs", device, what);
    case VK_ERROR_TOO_MANY_OBJECTS: return error_set(err, "%s: %s: the driver allows no further allocation; update it", device, what);
    case VK_ERROR_DEVICE_LOST:
        return error_set(
            err,
            "%s: %s: the driver lost the device (it was reset or unplugged, overheated, or a kernel ran too long); start again. If "
            "it happens again, update the driver (now %s) or use --device cpu",
            device, what, g->info.driver);
    case VK_TIMEOUT:
        return error_set(
            err,
            "%s: %s: the device does not answer any more, although its work should have been done long ago; restart the machine "
            "and start again. If it happens again, update the driver (now %s) or use --device cpu",
            device, what, g->info.driver);
    default:
        return error_set(err, "%s: %s: the driver %s answered with error %d; update it, or use --device cpu", device, what, g->info.driver,
                         result);
    }
}
