"""Whether this machine can run a bundle's code: operating system, processor, instruction sets.

LLVM's names of instruction sets are compared with what the kernel reports (/proc/cpuinfo), since
LLVM itself need not be installed. Features that no compiled code uses by itself are not compared.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

from tilewright.ir.errors import BundleError
from tilewright.ir.target import Target
from tilewright.runtime.bundle.manifest import Machine

# LLVM's name: the kernel's name, where it is another
_X86 = {
    **{n: n for n in ("adx", "aes", "avx", "avx2", "avx512bw", "avx512cd", "avx512dq", "avx512f")},
    **{n: n for n in ("avx512ifma", "avx512vbmi", "avx512vl", "bmi2", "cx16", "f16c", "fma")},
    **{n: n for n in ("gfni", "movbe", "popcnt", "sse2", "sse4a", "ssse3", "vaes", "vpclmulqdq")},
    **{n: n for n in ("xop", "fma4", "tbm", "lwp")},
    "avx512bf16": "avx512_bf16",
    "avx512bitalg": "avx512_bitalg",
    "avx512fp16": "avx512_fp16",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512vnni": "avx512_vnni",
    "avx512vp2intersect": "avx512_vp2intersect",
    "avx512vpopcntdq": "avx512_vpopcntdq",
    "avxvnni": "avx_vnni",
    "avxvnniint8": "avx_vnni_int8",
    "avxvnniint16": "avx_vnni_int16",
    "avxifma": "avx_ifma",
    "avxneconvert": "avx_ne_convert",
    "amx-tile": "amx_tile",
    "amx-int8": "amx_int8",
    "amx-bf16": "amx_bf16",
    "amx-fp16": "amx_fp16",
    "bmi": "bmi1",
    "lzcnt": "abm",
    "pclmul": "pclmulqdq",
    "sha": "sha_ni",
    "sse3": "pni",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
}
_ARM = {"neon": "asimd", "fullfp16": "asimdhp", "dotprod": "asimddp", "bf16": "bf16"}
_ARM |= {"i8mm": "i8mm", "sve": "sve", "sve2": "sve2", "crc": "crc32", "lse": "atomics"}

_V2 = ("cx16", "popcnt", "sse2", "sse3", "ssse3", "sse4.1", "sse4.2")
_V3 = (*_V2, "avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe")
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
_ZEN3 = (*_V3, "adx", "aes", "pclmul", "sha", "sse4a", "vaes", "vpclmulqdq")
_ICE = ("avx512ifma", "avx512vbmi", "avx512vbmi2", "avx512vnni", "avx512bitalg", "avx512vpopcntdq")
_ZEN4 = (*_ZEN3, *_V4, *_ICE, "avx512bf16", "gfni")
# What LLVM may use where a target names a processor alone.
_OF_CPU: dict[str, tuple[str, ...]] = {
    "x86-64-v3": _V3,
    "x86-64-v4": _V4,
    "haswell": (*_V3, "pclmul"),
    "znver3": _ZEN3,
    "znver4": _ZEN4,
    "znver5": (*_ZEN4, "avxvnni", "avx512vp2intersect"),
    "skylake-avx512": (*_V4, "adx", "aes", "pclmul"),
    "sapphirerapids": (
        *(*_V4, *_ICE, "adx", "aes", "pclmul", "sha", "vaes", "vpclmulqdq", "gfni"),
        *("avx512bf16", "avx512fp16", "avxvnni", "amx-tile", "amx-int8", "amx-bf16"),
    ),
    "generic": (),
}


def needs_of(target: Target) -> Machine:
    """What code for a CPU target needs, when made on this kind of machine."""
    given = {f[1:] for f in target.features.split(",") if f.startswith("+")}
    names = given if target.features else set(_OF_CPU.get(target.cpu, ()))
    known = _ARM if _is_arm(platform.machine()) else _X86
    return Machine(platform.system(), platform.machine(), tuple(sorted(names & set(known))))


def require_fit(needs: Machine, what: str) -> None:
    """BundleError that names what this machine lacks."""
    for name, wanted, found in (
        ("operating system", needs.system, platform.system()),
        ("processor", needs.machine, platform.machine()),
    ):
        if wanted != found:
            raise BundleError(f"{what} is for another {name}: {wanted}, this machine is {found}")
    have = cpu_flags()
    known = _ARM if _is_arm(needs.machine) else _X86
    missing = [f for f in needs.features if f in known and known[f] not in have]
    if missing:
        raise BundleError(
            f"{what} is for a processor with {', '.join(missing)}, which this one lacks; make one "
            "for it (tilewright bundle --target x86-64-v3 runs on most)"
        )


@cache
def cpu_flags() -> frozenset[str]:
    """Instruction sets as the kernel names them; BundleError where it does not say."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError as error:
        raise BundleError(f"cannot tell what this processor has: {error}") from None
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    raise BundleError("cannot tell what this processor has: /proc/cpuinfo does not list it")


def _is_arm(machine: str) -> bool:
    return machine.lower() in ("aarch64", "arm64")
