/* Vulkan's validation layer over the tests: every test program that opens a Vulkan device, and every run of the built program
   (program.h), is watched, and one message of the layer fails it. Not under the sanitizers: the layer itself leaks memory. */
#ifndef VULORA_TESTS_SUPPORT_VALIDATION_H
#define VULORA_TESTS_SUPPORT_VALIDATION_H

/* First in main of a program that opens a Vulkan device. A VULORA_VK_VALIDATE that is set already stays. */
void validation_begin(void);

/* What main returns, after the last device is closed: how many tests failed, and one more, named on stderr, if the layer gave a message. */
int validation_end(int failed);

#endif
