// What every generated kernel includes: the device's operations under nvcc and NVRTC, their
// emulation under a C++ compiler for the host. Both headers give the same names in namespace tw.
#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#include "tilewright.cuh"
#else
#include "tilewright_host.h"
#endif

#include "tilewright_scalar.h"
