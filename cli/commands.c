#include "cli/commands.h"

#include <limits.h>

const command command_table[] = {
    {"train", "train_network train_network.py", COMMAND_TRAIN, "", 0, 0, "learn a subject or a style from a folder of pictures", cmd_train},
    {"generate", "txt2img", COMMAND_GENERATE, "", 0, 0, "draw pictures, with any number of adapters", cmd_generate},
    {"inspect", NULL, COMMAND_INSPECT, "FILE...", 1, INT_MAX, "say what adapter files are: kind, rank, modules, metadata, problems",
     cmd_inspect},
    {"devices", NULL, COMMAND_DEVICES, "", 0, 0, "list what can compute here, and what auto picks", cmd_devices},
    {"bench", NULL, COMMAND_BENCH, "", 0, 0, "time a part of the model on a device", cmd_bench},
    {"probe", NULL, COMMAND_PROBE, "PART", 1, 1, "run one part of the model on given tensors", cmd_probe},
    {0}};
