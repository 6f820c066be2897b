"""``tilewright.compile``: wraps a function or module so that its attention runs in our kernels."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, overload

import torch

from tilewright.frontend.capture import Backend, Capture, register_backend
from tilewright.frontend.options import Options
from tilewright.frontend.report import Report
from tilewright.ir.errors import DeterminismError, TilewrightError
from tilewright.runtime.locks import Guard
from tilewright.runtime.verification.first_calls import checked_option

Function = Callable[..., Any]


class _Compiled:
    """A callable under torch.compile with our capture; shared by both wrappers."""

    def __init__(self, function: Function, options: Options, dynamic: bool | None) -> None:
        register_backend()
        self.options = options
        self.dynamic = dynamic
        self.capture = Capture(options)
        self.kept = options.level
        whole = self.kept.promises("threads")  # what Dynamo leaves out would run as torch runs it
        backend = Backend(self.capture)
        self.run = torch.compile(function, backend=backend, dynamic=dynamic, fullgraph=whole)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.run(*args, **kwargs)
        except (torch._dynamo.exc.Unsupported, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
            raise self._not_captured(error) from error
        except torch._dynamo.exc.BackendCompilerFailed as failure:
            if isinstance(failure.inner_exception, TilewrightError):
                raise failure.inner_exception from None
            raise

    def _not_captured(self, error: Exception) -> Exception:
        """What Dynamo cannot capture, or not any more, has no level."""
        if not self.kept.promises("threads"):
            return error
        limit = isinstance(error, torch._dynamo.exc.FailOnRecompileLimitHit)
        advice = (
            "raise torch._dynamo.config.recompile_limit (counts of threads, and sizes of 1, make "
            "graphs of their own)"
            if limit
            else "write it so that it is one graph, or ask for deterministic='run'"
        )
        reason = str(error).strip().split("\n")[0]
        return DeterminismError(
            f"deterministic={self.kept.name!r}, but torch would run this call itself: {reason}; "
            f"{advice}"
        )


class CompiledFunction:
    """A compiled function. ``explain()`` says what became of it."""

    def __init__(self, function: Function, options: Options, dynamic: bool | None) -> None:
        self._compiled = _Compiled(_with_own_code(function), options, dynamic)
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._compiled(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        """What a copy is made from: it compiles anew."""
        made = self._compiled
        return type(self), (self.__dict__["__wrapped__"], made.options, made.dynamic)

    def __get__(self, owner: object, _type: type | None = None) -> Any:
        """Works as a method, too."""
        return self if owner is None else types.MethodType(self, owner)

    def explain(self) -> Report:
        """The regions, their kernels, and what stayed with torch, of all calls so far."""
        return self._compiled.capture.report()


_OWN = {"_orig_mod", "_compiled", "_installed", "training", "_is_full_backward_hook"}


class CompiledModule(torch.nn.Module):
    """A compiled module: calls go through the kernels, attributes are those of the module.

    The module itself is not changed. Its methods (such as ``generate``) see the compiled call while
    they run, so that loops over the model inside them are fast. Hooks registered here run around
    the compiled call, those of the module are compiled with it.
    """

    def __init__(self, module: torch.nn.Module, options: Options, dynamic: bool | None) -> None:
        super().__init__()
        self._orig_mod = module
        self._compiled = _Compiled(_entry(module), options, dynamic)
        self._installed = _Installed(module, self._compiled)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        hooks = self._forward_hooks or self._forward_pre_hooks
        if hooks or self._backward_hooks or self._backward_pre_hooks:
            return super().__call__(*args, **kwargs)
        return self._compiled(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The compiled call, without the hooks of this wrapper."""
        return self._compiled(*args, **kwargs)

    def explain(self) -> Report:
        """The regions, their kernels, and what stayed with torch, of all calls so far."""
        return self._compiled.capture.report()

    def __reduce__(self) -> tuple[Any, ...]:
        """What copies and pickles are made from: module, options and hooks; they compile anew."""
        remade = ("_modules", "_compiled", "_installed")
        own = {n: v for n, v in self.__dict__.items() if n not in remade}
        made = self._compiled
        return type(self), (self._orig_mod, made.options, made.dynamic), own

    @property
    def training(self) -> bool:
        """The module's own mode, not a copy of it."""
        module = self.__dict__.get("_modules", {}).get("_orig_mod")
        return module is None or bool(module.training)

    @training.setter
    def training(self, mode: bool) -> None:
        module = self.__dict__.get("_modules", {}).get("_orig_mod")
        if module is not None:
            module.training = mode

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("_modules", {}):
            return self._modules[name]
        if name == "__deepcopy__":  # a module's own would give a copy that is not compiled
            raise AttributeError(name)
        module = self._modules["_orig_mod"]
        value = getattr(module, name)
        if inspect.ismethod(value) and value.__self__ is module:
            return self._installed.wrapping(value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN or "_orig_mod" not in self.__dict__.get("_modules", {}):
            super().__setattr__(name, value)
        else:
            setattr(self._orig_mod, name, value)


def _entry(self: torch.nn.Module) -> Function:
    """A frame of ours to start from: Dynamo does not look into torch's own modules (nn.Linear) when
    they are called first, only when they are called from a frame that it captures."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        return self._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]

    return _with_own_code(forward)


def _with_own_code(function: Function) -> Function:
    """The same function with a copy of its code: Dynamo counts what it has compiled for a piece of
    code, and would leave the ninth module, or the ninth closure of one definition, to torch."""
    if inspect.ismethod(function):
        return types.MethodType(_with_own_code(function.__func__), function.__self__)
    if not inspect.isfunction(function):
        return function
    copy = types.FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return functools.update_wrapper(copy, function)


class _Installed:
    """Makes ``module(...)`` the compiled call while one of its methods runs (in any thread)."""

    def __init__(self, module: torch.nn.Module, compiled: Function) -> None:
        self._module = module
        self._compiled = compiled
        self._depth = 0
        self._guard = Guard()

    def wrapping(self, method: Function) -> Function:
        @functools.wraps(method)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self._active():
                return method(*args, **kwargs)

        return wrapped

    @contextmanager
    def _active(self) -> Iterator[None]:
        with self._guard.lock:
            self._depth += 1
            self._module._compiled_call_impl = self._compiled
        try:
            yield
        finally:
            with self._guard.lock:
                self._depth -= 1
                if not self._depth:
                    self._module._compiled_call_impl = None


@overload
def compile(  # type: ignore[overload-overlap]  # a module is callable, but gets its own wrapper
    fn_or_module: torch.nn.Module,
    *,
    target: str | None = ...,
    dynamic: bool | None = ...,
    strict: bool = ...,
    verify: bool | str = ...,
    deterministic: str | None = ...,
    reproducible: bool = ...,
) -> CompiledModule: ...


@overload
def compile(
    fn_or_module: Function,
    *,
    target: str | None = ...,
    dynamic: bool | None = ...,
    strict: bool = ...,
    verify: bool | str = ...,
    deterministic: str | None = ...,
    reproducible: bool = ...,
) -> CompiledFunction: ...


@overload
def compile(
    fn_or_module: None = ...,
    *,
    target: str | None = ...,
    dynamic: bool | None = ...,
    strict: bool = ...,
    verify: bool | str = ...,
    deterministic: str | None = ...,
    reproducible: bool = ...,
) -> Callable[[Function], CompiledFunction]: ...


def compile(
    fn_or_module: Function | None = None,
    *,
    target: str | None = None,
    dynamic: bool | None = True,
    strict: bool = False,
    verify: bool | str = False,
    deterministic: str | None = None,
    reproducible: bool = False,
) -> Any:
    """Compiles a function of tensors or a module; also a decorator, with or without arguments.

    What we have kernels for runs in them, everything else runs in torch as before; ``.explain()``
    of the result lists both. ``target`` names a processor (None: this one). ``dynamic=True``
    compiles once for all lengths and batch sizes. ``strict=True`` raises FallbackError where an
    operation would unexpectedly stay with torch. ``verify=True`` compares a kernel's results with
    torch in float64 when it is first called with inputs of a kind (docs/verify.md), "always" at
    every call, and raises EvaluationError if they differ. ``deterministic`` ("run", "threads",
    "batch") and ``reproducible=True`` say what bits may not depend on (docs/determinism.md):
    DeterminismError names what cannot keep it.
    """
    options = Options(target, strict, checked_option(verify), deterministic, reproducible)
    options.level  # noqa: B018 (refuses unknown ones)
    if fn_or_module is None:
        return functools.partial(compile, dynamic=dynamic, **dataclasses.asdict(options))
    if isinstance(fn_or_module, torch.nn.Module):
        return CompiledModule(fn_or_module, options, dynamic)
    return CompiledFunction(fn_or_module, options, dynamic)
