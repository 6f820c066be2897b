"""LLVM IR text to machine code through llvmlite, and object files into this process.

llvmlite is imported when first needed. Loading an object needs neither MLIR nor a linker.
"""

from __future__ import annotations

import ctypes
import importlib
import platform
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from tilewright.ir.errors import BackendMissingError, TargetError, UnsupportedError
from tilewright.runtime.locks import GENERATORS
from tilewright.runtime.memory_limit import LIBRARY, require_memory

_ELF64_LITTLE = b"\x7fELF\x02\x01"
_MACH_O = b"\xcf\xfa\xed\xfe"
_ELF_MACHINES = {"x86_64": 62, "amd64": 62, "aarch64": 183, "arm64": 183}  # e_machine
_SECTION = struct.Struct("<IIQQQQIIQQ")  # a section's header
_SYMBOL_TABLE = 2  # sh_type of .symtab
_WITHOUT_BYTES = (0, 8)  # sh_type of none, and of memory that begins as zeros
_LOADING = 16 << 20  # bytes that LLVM may take for an object file of any size


@dataclass(frozen=True)
class NativeFunction:
    """Code in this process: valid as long as ``keepalive`` is held."""

    address: int
    keepalive: object = field(repr=False)


@cache
def _llvm() -> Any:
    """llvmlite's binding, ready for this machine's code."""
    with GENERATORS.lock:
        if "llvmlite.binding" not in sys.modules:
            require_memory(LIBRARY, "loading LLVM (llvmlite)")
        try:
            llvm = importlib.import_module("llvmlite.binding")
        except (ImportError, OSError) as error:
            message = f"machine code needs llvmlite: pip install llvmlite ({error})"
            raise BackendMissingError(message) from error
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        return llvm


def host_cpu() -> tuple[str, str]:
    """This machine's CPU name and its features, as LLVM writes them (``znver4``, ``+avx2,…``);
    without llvmlite the system's name and no features, which is enough for the interpreter."""
    with GENERATORS.lock:  # llvmlite has a lock of its own around every call
        try:
            llvm = _llvm()
        except BackendMissingError:
            return platform.processor() or "unknown", ""
        return llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()


def compile_llvm(llvm_ir: str, cpu: str, features: str, shared: bool = False) -> bytes:
    """The object file of LLVM IR, optimised for a CPU (``features`` may be empty); ``shared``: as
    part of a shared library, which may lie anywhere.

    LLVM only warns about a CPU that it does not know: the caller has to know its targets.
    """
    with GENERATORS.lock:
        machine = _library_machine(cpu, features) if shared else _machine(cpu, features)
        return bytes(machine.emit_object(_optimised(llvm_ir, machine)))


def assembly(llvm_ir: str, cpu: str, features: str, triple: str = "") -> str:
    """The assembly text of the same code, for people to read; ``triple``: LLVM's name of another
    kind of machine than this one."""
    with GENERATORS.lock:
        machine = _machine(cpu, features, triple)
        return str(machine.emit_assembly(_optimised(llvm_ir, machine)))


def load_object(data: bytes, symbol: str) -> NativeFunction:
    """Put an object file into this process and find a function in it."""
    llvm = _llvm()
    _check_form(data, symbol)
    with GENERATORS.lock:
        missing = [n for n in undefined_symbols(data) if not _resolve(llvm, n)]
    if missing:
        # MCJIT would end the process with a message of its own
        raise UnsupportedError(
            f"{symbol}: the machine code calls {', '.join(missing)}, which this process does not "
            "have; the operation has to be decomposed before it reaches LLVM"
        )
    require_memory(_LOADING + 2 * len(data), f"loading {symbol}")
    with GENERATORS.lock:
        host, features = host_cpu()
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine(host, features))
        engine.add_object_file(llvm.ObjectFileRef.from_data(data))
        engine.finalize_object()
        address = engine.get_function_address(symbol)
    if not address:
        raise TargetError(f"the object file has no function {symbol}")
    return NativeFunction(address, engine)


def _resolve(llvm: Any, name: str) -> bool:
    """True if the process has a symbol; one of the C library's is made known to LLVM."""
    if llvm.address_of_symbol(name):
        return True
    for library in (None, "libm.so.6"):
        try:
            function = getattr(ctypes.CDLL(library), name)
        except (OSError, AttributeError):
            continue
        llvm.add_symbol(name, ctypes.cast(function, ctypes.c_void_p).value)
        return True
    return False


def _check_form(data: bytes, symbol: str) -> None:
    """TargetError unless these are a whole object file for this machine: LLVM would crash."""
    good = data.startswith((_ELF64_LITTLE, _MACH_O))
    if data.startswith(_ELF64_LITTLE):
        try:
            machine = struct.unpack_from("<H", data, 18)[0]
            good = machine == _ELF_MACHINES.get(platform.machine().lower(), machine)
            undefined_symbols(data)
        except (struct.error, ValueError, IndexError, OverflowError):
            good = False
    if not good:
        raise TargetError(f"{symbol}: not an object file for {platform.machine()}")


def undefined_symbols(data: bytes) -> tuple[str, ...]:
    """Names that an ELF object wants from the process; none known for another format."""
    if not data.startswith(_ELF64_LITTLE):
        return ()
    found = {name for name, section in _symbols(data) if name and not section}
    return tuple(sorted(found))


def _symbols(data: bytes) -> Iterator[tuple[str, int]]:
    """Name and section number of every symbol; section 0 means that it is defined elsewhere."""
    at = struct.unpack_from("<Q", data, 40)[0]
    entry_bytes, count = struct.unpack_from("<HH", data, 58)
    if entry_bytes != _SECTION.size:
        raise ValueError(f"section headers of {entry_bytes} bytes")
    headers = [_SECTION.unpack_from(data, at + i * entry_bytes) for i in range(count)]
    for _, kind, _, _, offset, size, *_ in headers:
        if kind not in _WITHOUT_BYTES and offset + size > len(data):
            raise ValueError("a section lies beyond the file's end")
    for _, kind, _, _, offset, size, link, _, _, entry in headers:
        if kind != _SYMBOL_TABLE:
            continue
        strings = headers[link][4]
        for place in range(offset, offset + size, entry):
            name, _, _, section = struct.unpack_from("<IBBH", data, place)
            start = strings + name
            yield data[start : data.index(b"\0", start)].decode(), section


def _machine(cpu: str, features: str, triple: str = "") -> Any:
    """A target machine; MCJIT takes its own away, so that each has to be a new one."""
    llvm = _llvm()
    if triple:
        return _foreign(llvm, triple).create_target_machine(cpu=cpu, features=features, opt=3)
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(
        cpu=cpu, features=features, opt=3, jit=True, codemodel="jitdefault"
    )


def _foreign(llvm: Any, triple: str) -> Any:
    """Another kind of machine, if this LLVM was built with it. Raises TargetError."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    try:
        return llvm.Target.from_triple(triple)
    except RuntimeError as error:
        raise TargetError(f"llvmlite's LLVM makes no code for {triple}: {error}") from None


def _library_machine(cpu: str, features: str) -> Any:
    """A target machine for position-independent code."""
    target = _llvm().Target.from_default_triple()
    return target.create_target_machine(
        cpu=cpu, features=features, opt=3, reloc="pic", codemodel="small"
    )


def _optimised(llvm_ir: str, machine: Any) -> Any:
    """The parsed module, its functions after LLVM's own pipeline of level 3."""
    llvm = _llvm()
    try:
        module = llvm.parse_assembly(llvm_ir)
        module.verify()
    except RuntimeError as error:
        # only our own code generator writes this text
        raise AssertionError(f"wrong LLVM IR was generated: {error}") from error
    module.triple = machine.triple
    module.data_layout = str(machine.target_data)
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    # the generated code is vectors and unrolled by design already
    options.loop_unrolling = options.loop_vectorization = options.slp_vectorization = False
    builder = llvm.create_pass_builder(machine, options)
    # every function by itself: nothing is left to inline, and the module's pipeline takes 1.4 times
    # as long for the same instructions
    passes = builder.getFunctionPassManager()
    for function in module.functions:
        if not function.is_declaration:
            passes.run(function, builder)
    return module
