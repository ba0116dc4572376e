// Functions that tests call by ctypes, to steer the machine and to look into it.
#pragma once

#define CONTROL extern "C" __attribute__((visibility("default")))
