"""Adds the native libraries, one per instruction-set level, to the plain setuptools build.

An editable install puts them into runtime/lib of the checkout, a wheel carries them. What lies in
runtime/lib and was built from the same sources is taken as it is. Without a C++ compiler the
installation succeeds and infopt runs its reference kernels.
"""

import importlib.util
import os
import sys
from pathlib import Path

from setuptools import Command, Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

ROOT = Path(__file__).resolve().parent


def load_toolchain():
    """codegen/toolchain.py by its path: infopt itself cannot be imported while it is built."""
    load("parallel")  # found by the next one's import
    return load("toolchain")


def load(name):
    full = f"infopt.codegen.{name}"
    spec = importlib.util.spec_from_file_location(full, ROOT / "codegen" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[full] = module
    spec.loader.exec_module(module)
    return module


class BuildNative(Command):
    """Compile executor and kernels into infopt/runtime/lib."""

    description = "compile the native libraries"
    user_options: list = []
    editable_mode = False

    def initialize_options(self):
        self.build_lib = None

    def finalize_options(self):
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def run(self):
        toolchain = load_toolchain()
        compiler = toolchain.find_compiler(os.environ.get("CXX"))
        if compiler is None:
            self.warn("no C++ compiler found: infopt will run its reference kernels")
            return
        wanted = toolchain.libraries(ROOT / "codegen", ROOT / "runtime")
        self.announce(f"compiling {len(wanted)} libraries with {compiler.version}", level=2)
        built = toolchain.build_libraries(compiler, wanted, self.folder(), ROOT / "runtime" / "lib")
        for name, result in built.items():
            if isinstance(result, toolchain.BuildFailed):  # a lower level or the reference serves
                self.warn(f"{name} is left out: {result}")

    def folder(self) -> Path:
        if self.editable_mode:
            return ROOT / "runtime" / "lib"
        return Path(self.build_lib) / "infopt" / "runtime" / "lib"

    def get_source_files(self):
        return []  # package data already: the C++ text is installed as well

    def get_outputs(self):
        return [str(file) for file in sorted(self.folder().glob("*")) if file.is_file()]

    def get_output_mapping(self):
        return {}


class NativeDistribution(Distribution):
    """Tells setuptools that the package belongs to one platform."""

    def has_ext_modules(self):
        return True


class PlatformWheel(bdist_wheel):
    """The libraries are plain C functions: any Python version of the platform can load them."""

    def get_tag(self):
        return ("py3", "none", super().get_tag()[2])


build.sub_commands = [*build.sub_commands, ("build_native", None)]
setup(
    distclass=NativeDistribution,
    cmdclass={"build_native": BuildNative, "bdist_wheel": PlatformWheel},
)
