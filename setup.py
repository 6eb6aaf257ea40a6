"""Build of the compiled kernels; everything else is in ``pyproject.toml``.

Two kinds of sources are found by name, so a new kernel needs no line here:

* ``_x_c.pyx`` — a twin of ``_x_py.py`` that works on C pointers;
* ``_x_py.py`` with ``_x_c.pxd`` beside it — one Python source, compiled as ``_x_c`` with the C
  types of the ``.pxd`` (the other name keeps the extension from shadowing its own source).

Environment:

``NEXUS_NO_EXTENSIONS=1``       build nothing; the pure-Python kernels run
``NEXUS_REQUIRE_EXTENSIONS=1``  a kernel that does not build is an error, not a fallback
``NEXUS_BUILD_ONLY=a,b``        build only modules whose dotted name contains one of these
``NEXUS_CYTHON_TRACE=1``        line tracing, for coverage and debuggers
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

from setuptools import Extension, setup
from setuptools._distutils.ccompiler import new_compiler
from setuptools._distutils.sysconfig import customize_compiler
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).resolve().parent
NO_EXTENSIONS = os.environ.get("NEXUS_NO_EXTENSIONS", "") not in ("", "0")
REQUIRE_EXTENSIONS = os.environ.get("NEXUS_REQUIRE_EXTENSIONS", "") not in ("", "0")
TRACE = os.environ.get("NEXUS_CYTHON_TRACE", "") not in ("", "0")
#: Modules of ours whose types a ``.pyx`` or ``.pxd`` uses.
CIMPORT = re.compile(r"^\s*(?:from\s+|cimport\s+)(nexus\.[\w.]+)(?=\s+cimport|\s*$)", re.MULTILINE)


def say(line: str) -> None:
    print(f"nexus build: {line}", file=sys.stderr, flush=True)


def kernel_sources() -> dict[str, str]:
    """Dotted extension name → source path, relative to this file."""
    found: dict[str, str] = {}
    for pyx in sorted(HERE.glob("nexus/**/_*_c.pyx")):
        relative = pyx.relative_to(HERE)
        found[".".join(relative.with_suffix("").parts)] = str(relative)
    for pxd in sorted(HERE.glob("nexus/**/_*_c.pxd")):
        relative = pxd.relative_to(HERE)
        name = ".".join(relative.with_suffix("").parts)
        source = relative.with_name(relative.stem.removesuffix("_c") + "_py.py")
        if name not in found and (HERE / source).exists():
            found[name] = str(source)
    only = [part for part in os.environ.get("NEXUS_BUILD_ONLY", "").split(",") if part]
    if only:
        found = {k: v for k, v in found.items() if any(part in k for part in only)}
    return found


def types_of(name: str, source: str) -> set[Path]:
    """The ``.pxd`` files that a module is translated with: its own, and all that it cimports."""
    found: set[Path] = set()
    queue = [HERE / source, HERE.joinpath(*name.split(".")).with_suffix(".pxd")]
    while queue:
        path = queue.pop()
        if path in found or not path.exists():
            continue
        found.add(path)
        queue += (
            HERE.joinpath(*module.split(".")).with_suffix(".pxd")
            for module in CIMPORT.findall(path.read_text())
        )
    return {path for path in found if path.suffix == ".pxd"}


def drop_outdated(sources: dict[str, str]) -> None:
    """Remove what was generated with types, or by a build, that have changed since.

    Cython looks for the types of a source beside the source's own name, and so does not see that
    ``_x_py.py`` depends on ``_x_c.pxd``, nor on those that it cimports. A layout that changed in
    one module and not in another would corrupt memory.
    """
    for name, source in sources.items():
        generated = (HERE / "build" / "cython" / source).with_suffix(".c")
        if generated.exists():
            translated = generated.stat().st_mtime
            causes = {HERE / "setup.py"} | types_of(name, source)
            if any(path.stat().st_mtime > translated for path in causes):
                generated.unlink()


def can_compile() -> bool:
    """Whether a C compiler and Python's headers are at hand: by compiling two lines."""
    compiler = new_compiler()
    customize_compiler(compiler)
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory, "probe.c")
        source.write_text("#include <Python.h>\nint probe(void) { return 0; }\n")
        try:
            compiler.compile(
                [str(source)], output_dir=directory, include_dirs=[sysconfig.get_path("include")]
            )
        except Exception:  # noqa: BLE001  (every compiler class raises its own family)
            return False
    return True


def optimisation(name: str) -> str:
    """The loops over bytes gain by ``-O3``; what calls Python all the time only takes longer."""
    return "-O3" if "._speedups." in name else "-O2"


def extensions() -> list[Extension]:
    if NO_EXTENSIONS:
        say("NEXUS_NO_EXTENSIONS is set: pure-Python kernels")
        return []
    if not REQUIRE_EXTENSIONS and not can_compile():
        say("no C compiler or no Python headers: falling back to pure Python, which is slower")
        return []
    from Cython.Build import cythonize
    from Cython.Compiler.Errors import CompileError as TranslationError

    # Without -g0 the debug information is most of the file and a third of the build's time.
    compile_args = ["-g0", "-fno-plt", "-Wno-unused-function", "-Wno-unreachable-code"]
    if os.uname().machine in ("x86_64", "AMD64"):
        compile_args.append("-mcx16")  # the 16-byte compare-and-swap of the shared bucket table
    sources = kernel_sources()
    drop_outdated(sources)
    modules = [
        Extension(
            name,
            [source],
            extra_compile_args=[*compile_args, optimisation(name)],
            define_macros=[("CYTHON_TRACE", "1")] if TRACE else [],
        )
        for name, source in sources.items()
    ]
    try:
        cythonized: list[Extension] = cythonize(
            modules,
            build_dir="build/cython",
            nthreads=os.cpu_count() or 1,
            compiler_directives={
                "language_level": 3,
                "boundscheck": False,
                "wraparound": False,
                "cdivision": True,
                "initializedcheck": False,
                "freethreading_compatible": False,
                "auto_pickle": False,
                "linetrace": TRACE,
            },
        )
    except TranslationError:
        if REQUIRE_EXTENSIONS:
            raise
        say("Cython could not translate the kernels: falling back to pure Python")
        return []
    return cythonized


class OptionalBuildExt(build_ext):
    """Compiles the kernels where a compiler is at hand and says so where it is not."""

    def finalize_options(self) -> None:
        super().finalize_options()
        if self.parallel is None:
            self.parallel = os.cpu_count() or 1

    def run(self) -> None:
        try:
            super().run()
        except Exception as error:  # every compiler and platform raises its own kind
            if REQUIRE_EXTENSIONS:
                raise
            self._fall_back(error)

    def _fall_back(self, error: Exception) -> None:
        # All compiled or none: a half-built set would mix backends.
        for extension in self.extensions:
            Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
        self.extensions = []
        say(f"a kernel did not compile ({error}): falling back to pure Python, which is slower")


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """One build at a time in this tree: two would take each other's half-written files."""
    directory = HERE / "build"
    directory.mkdir(exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another build runs in this tree, waiting for its end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# An installation without kernels may go on beside a build.
with contextlib.nullcontext() if NO_EXTENSIONS else alone():
    setup(ext_modules=extensions(), cmdclass={"build_ext": OptionalBuildExt})
