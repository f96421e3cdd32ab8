#!/usr/bin/env python3
"""Every rule catches its violation, in a project made in a temporary directory, and a clean project passes: the ctest `tidy_self`."""

import pathlib
import subprocess
import tempfile
import textwrap
import unittest

import sizes
import source
import tidy

# A small project that breaks no rule.
CLEAN = {
    "README.md": "# Sample\n",
    "common/README.md": "# common\n",
    "common/CMakeLists.txt": "qserve_library(common SOURCES clock.cc)\n",
    "common/clock.h": "#pragma once\nint Now();\n",
    "common/clock.cc": '#include "common/clock.h"\n\nint Now() { return 1; }\n',
}


def function_of(lines, name="F"):
    return f"int {name}() {{\n" + "  Step();\n" * (lines - 2) + "}\n"


class TidyTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        subprocess.run(["git", "init", "-q"], cwd=self.root, check=True)
        self.write(CLEAN)

    def write(self, files):
        for path, content in files.items():
            target = self.root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content if isinstance(content, bytes) else content.encode())

    def write_built(self, path, content):
        """A file together with what keeps it from being an orphan."""
        folder, name = path.rsplit("/", 1)
        self.write({path: content, f"{folder}/README.md": "# Folder\n"})
        if name.endswith((".cc", ".cu")):
            listing = self.root / folder / "CMakeLists.txt"
            before = listing.read_text() if listing.exists() else ""
            self.write({f"{folder}/CMakeLists.txt": before + f"qserve_library(l SOURCES {name})\n"})

    def found(self):
        return [str(violation) for violation in tidy.violations(self.root)[1]]

    def assert_one(self, *parts):
        found = self.found()
        self.assertEqual(len(found), 1, found)
        for part in parts:
            self.assertIn(part, found[0])

    def assert_clean(self):
        self.assertEqual(self.found(), [])


class CleanTest(TidyTest):
    def test_clean_project_passes(self):
        self.assert_clean()

    def test_ignored_and_deleted_files_do_not_count(self):
        self.write({".gitignore": "/build/\n", "build/generated.cc": "using " + "namespace std;\n"})
        self.assert_clean()


class LayeringTest(TidyTest):
    def include(self, path, header):
        suffix = "" if path.endswith((".h", ".cuh")) else "int Unused();\n"
        self.write_built(path, f'#include "{header}"\n{suffix}')
        if not (self.root / header).exists() and "/" in header and not header.endswith(".pb.h"):
            self.write_built(header, "#pragma once\n")

    def test_nothing_points_up(self):
        for path, header in (("common/a.cc", "kernels/backend.h"),
                             ("worker/sched/a.cc", "worker/exec/step.h"),
                             ("worker/sched/b.cc", "kernels/ops.h"),
                             ("worker/plan/a.cc", "worker/sched/b.h"),
                             ("router/a.cc", "worker/plan/step_plan.h"),
                             ("router/http/a.cc", "kernels/ops.h"),
                             ("worker/engine/a.cc", "qserve/v1/inference.pb.h"),
                             ("kernels/ops.cc", "kernels/cpu/thread_pool.h"),
                             ("kernels/cpu/a.cc", "kernels/cuda/stream.h"),
                             ("quantizer/a.cc", "worker/serve/service.h"),
                             ("worker/engine/a.cc", "common/rpc/errors.h")):
            with self.subTest(path=path):
                self.setUp()
                self.include(path, header)
                self.assert_one(f"{path}:1: [layering]", "may not include", header)

    def test_allowed_includes_pass(self):
        for path, header in (("worker/exec/a.cc", "worker/model/llama.h"),
                             ("worker/serve/a.cc", "qserve/v1/inference.pb.h"),
                             ("worker/serve/b.cc", "common/rpc/errors.h"),
                             ("common/rpc/a.cc", "qserve/v1/inference.pb.h"),
                             ("kernels/device_factory.cc", "kernels/cpu/make.h"),
                             ("router/proxy/a.cc", "router/registry/registry.h"),
                             ("tests/unit/kernels/a.cc", "kernels/cpu/thread_pool.h")):
            with self.subTest(path=path):
                self.setUp()
                self.include(path, header)
                self.assert_clean()

    def test_production_code_does_not_include_tests(self):
        self.include("worker/sched/a.cc", "tests/fakes/fake_clock.h")
        self.assert_one("belongs to the tests")

    def test_unknown_folder(self):
        self.write_built("helpers/a.cc", "int F();\n")
        self.assert_one("helpers/a.cc:1: [layering]", "in no layer")

    def test_missing_relative_and_angled_headers(self):
        self.write_built("common/a.cc", '#include "common/gone.h"\n')
        self.assert_one("there is no common/gone.h")
        self.write_built("common/a.cc", '#include "clock.h"\n')
        self.assert_one("included from the root")
        self.write_built("common/a.cc", "#include <common/clock.h>\n")
        self.assert_one("in quotes")

    def test_configured_header(self):
        self.write({"common/version.h.in": "#pragma once\n"})
        self.write_built("common/a.cc", '#include "common/version.h"\n')
        self.assert_clean()

    def test_commented_include_does_not_count(self):
        self.write_built("common/a.cc", '// #include "kernels/ops.h"\n/*\n#include "kernels/ops.h"\n*/\n')
        self.assert_clean()

    def test_external_headers_stay_in_their_folders(self):
        for path, header, why in (("worker/model/a.cc", "cuda_runtime.h", "CUDA headers stay"),
                                  ("worker/model/a.cc", "nccl.h", "NCCL stays"),
                                  ("worker/exec/a.cc", "gloo/context.h", "Gloo stays"),
                                  ("worker/engine/a.cc", "grpcpp/server.h", "know no gRPC"),
                                  ("common/a.cc", "grpcpp/channel.h", "know no gRPC")):
            with self.subTest(path=path, header=header):
                self.setUp()
                self.write_built(path, f"#include <{header}>\n")
                self.assert_one(f"{path}:1: [layering]", why)

    def test_external_headers_at_home_pass(self):
        self.write_built("worker/comm/a.cc", "#include <gloo/context.h>\n")
        self.write_built("worker/comm/nccl_library.cc", "#include <cuda_runtime_api.h>\n#include <nccl.h>\n")
        self.write_built("kernels/cuda/runtime_cuda.cc", "#include <cuda_runtime_api.h>\n")
        self.write_built("worker/serve/a.cc", "#include <grpcpp/server.h>\n")
        self.assert_clean()

    def test_device_code_includes_only_launch_headers_and_device(self):
        self.include("kernels/cuda/a.cu", "kernels/ops.h")
        self.assert_one("device code includes only")
        self.setUp()
        self.include("kernels/cuda/a.cu", "kernels/cuda/a.h")
        self.assert_clean()
        self.write({"kernels/cuda/a.h": '#pragma once\n#include "kernels/types.h"\n', "kernels/types.h": "#pragma once\n"})
        self.write({"kernels/README.md": "# Folder\n"})
        self.assert_clean()

    def test_launch_headers_know_nothing_of_the_backend(self):
        self.include("kernels/cuda/a.cu", "kernels/cuda/a.h")
        self.include("kernels/cuda/a.h", "kernels/backend.h")
        self.assert_one("kernels/cuda/a.h:1: [layering]", "device code includes only")
        self.setUp()
        self.include("kernels/cuda/a.cu", "kernels/cuda/runtime.h")
        self.assert_one("kernels/cuda/a.cu:1: [layering]", "device code includes only")

    def test_cuda_headers_stay_in_the_vocabulary(self):
        self.write_built("kernels/cuda/b.cu", "#include <cuda_fp16.h>\n")
        self.assertTrue(any("CUDA headers stay" in line for line in self.found()))

    def test_device_headers_include_only_device(self):
        self.include("kernels/cuda/device/b.h", "kernels/cuda/a.h")
        self.include("kernels/cuda/a.cu", "kernels/cuda/device/b.h")
        self.assertEqual(len([line for line in self.found() if "device code includes only" in line]), 1)

    def test_concrete_classes_are_named_in_one_place(self):
        self.write_built("worker/model/a.cc", "GlooCommunicator* c;\n")
        self.assert_one("worker/model/a.cc:1: [layering]", "GlooCommunicator")
        self.setUp()
        self.write_built("worker/exec/a.cc", "\nCpuBackend* b;\n")
        self.assert_one("worker/exec/a.cc:2: [layering]", "CpuBackend")
        self.setUp()
        self.write_built("worker/exec/rank.cc", "LocalCommunicator* c;  // and no CpuBackend\n")
        self.assert_clean()

    def test_backend_header_is_for_the_factory(self):
        self.include("worker/exec/a.cc", "kernels/cuda_backend.h")
        self.assert_one("only kernels/device_factory includes")
        self.setUp()
        self.include("kernels/device_factory.cc", "kernels/cuda_backend.h")
        self.assert_clean()


class SizeTest(TidyTest):
    def test_long_file(self):
        self.write({"deploy/README.md": "#\n", "deploy/a.sh": "true\n" * 501})
        self.assert_one("deploy/a.sh:501: [size]", "501 lines")
        self.write({"deploy/a.sh": "true\n" * 500})
        self.assert_clean()

    def test_long_function(self):
        self.write_built("common/a.cc", "int kBefore = 1;\n\n" + function_of(71))
        self.assert_one("common/a.cc:3: [size]", "71 lines")
        self.write_built("common/a.cc", function_of(70))
        self.assert_clean()

    def test_long_functions_of_every_form(self):
        body = "  Step();\n" * 70
        for code in ("namespace a {\nclass B : public C {\n public:\n  void F() const override {\n" + body + "  }\n};\n}\n",
                     "template <class T, int N>\nauto F(T t) -> int {\n" + body + "}\n",
                     "B::B(int a)\n    : a_{a}, b_(a) {\n" + body + "}\n",
                     "TEST(Suite, Case) {\n" + body + "}\n",
                     "struct stat F() {\n" + body + "}\n",
                     'const char* k = "{";\nchar c = \'{\';\nint n = 1\'000;\nint F() {\n' + body + "}\n",
                     'auto s = R"x({ " {)x";\nint F() noexcept {\n' + body + "}\n"):
            with self.subTest(code=code[:40]):
                self.setUp()
                self.write_built("common/a.cc", code)
                self.assert_one("[size]", "this function has")

    def test_classes_and_tables_may_be_long(self):
        members = "  int a;\n  int F() { return 1; }\n" * 50
        table = "    {1, F(2)},\n" * 100
        self.write_built("common/a.cc", f"class A {{\n{members}}};\nconst Case kCases[] = {{\n{table}}};\n"
                         f"INSTANTIATE(All, Values({{\n{table}}}));\nenum class E {{\n" + "  kA,\n" * 90 + "};\n")
        self.assert_clean()

    def test_spans_of_functions(self):
        code = textwrap.dedent("""\
            #define M(x) { x
            struct A {
              int F(int x) {
                if (x) { return 1; }
                return 2;
              }
            };
            void G() {}
            """)
        self.assertEqual(list(sizes.functions(source.blank(code).split("\n"))), [(3, 6), (8, 8)])

    def test_long_rust_and_python_functions(self):
        self.write({"common/a.py": "def f():\n" + "    g()\n" * 70})
        self.assert_one("common/a.py:1: [size]", "function f has 71 lines")
        self.setUp()
        self.write({"common/a.rs": "impl<'a> A<'a> {\n    fn f(c: char) -> bool {\n        c == '{'\n" + "        g();\n" * 70 +
                    "    }\n}\n"})
        self.assert_one("common/a.rs:2: [size]", "this function has 73 lines")

    def test_long_line(self):
        long_name = "a" * 95
        self.write_built("common/a.cc", f"int {long_name} = 1;\n")
        self.assert_one("common/a.cc:1: [size]", "columns")
        self.write_built("common/a.cc", f"// https://{long_name}.example/\n#include <{long_name}>\n"
                         f'auto s = R"({long_name}{long_name}\n{long_name}{long_name})";\n')
        self.assert_clean()


class OrphanTest(TidyTest):
    def test_unlisted_source(self):
        self.write({"common/lost.cc": "int F();\n"})
        self.assert_one("common/lost.cc:1: [orphan]", "no CMakeLists.txt lists")

    def test_ways_to_list_a_source(self):
        self.write({"common/a.cc": "\n", "common/b.cc": "\n", "common/c.cc": "\n", "common/d.cc": "\n",
                    "tests/README.md": "#\n",
                    "tests/CMakeLists.txt": "qserve_test(a SOURCES ../common/a.cc ${PROJECT_SOURCE_DIR}/common/b.cc)\n",
                    "common/list.cmake": "set(s ${CMAKE_CURRENT_LIST_DIR}/c.cc)  # not lost.cc\nforeach(name d)\nendforeach()\n"})
        self.assert_clean()
        self.write({"common/lost.cc": "\n"})
        self.assert_one("common/lost.cc")

    def test_glob(self):
        self.write({"common/list.cmake": "file(" + "GLOB sources *.cc)\n"})
        self.assert_one("common/list.cmake:1: [orphan]", "not by a glob")

    def test_header_that_nothing_includes(self):
        self.write({"common/lost.h": "#pragma once\n"})
        self.assert_one("common/lost.h:1: [orphan]", "nothing includes")

    def test_function_that_is_not_forwarded(self):
        base = ("class A {\n  virtual ~A() = default;\n  virtual std::vector<int> F(int (*f)(int)) const { return {}; }\n"
                "  virtual void G() = 0;  // no virtual Comment()\n};\n")
        self.write({"common/clock.cc": '#include "common/clock.h"\n#include "common/a.h"\n#include "common/forwarding_a.h"\n',
                    "common/a.h": base, "common/forwarding_a.h": "void F() const override { }\nvoid G() override { a.G(); a.F(); }\n"})
        self.assert_clean()
        self.write({"common/forwarding_a.h": "void G() override { a.G(); a.F(); }\n"})
        self.assert_one("common/forwarding_a.h:1: [orphan]", "does not forward F")

    def test_rust_file_without_mod(self):
        self.write({"common/rust/README.md": "#\n", "common/rust/Cargo.toml": "\n", "common/rust/src/lib.rs": "mod a;\n",
                    "common/rust/src/a.rs": "\n", "common/rust/src/lost.rs": "\n"})
        self.assert_one("common/rust/src/lost.rs:1: [orphan]", "no `mod`")

    def test_folder_without_readme(self):
        self.write({"deploy/a.sh": "true\n"})
        self.assert_one("deploy/a.sh:1: [orphan]", "deploy has no README.md")


class WordTest(TidyTest):
    def test_words(self):
        for word in ("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK", "place" + "holder", "Not " + "implemented",
                     "for " + "now", "https://py" + "pi.org", "https://static.crates" + ".io", "cd /wo" + "rk/x",
                     "../shared/" + "design.md"):
            with self.subTest(word=word):
                self.setUp()
                self.write({"common/README.md": f"# common\n\nA line with {word} in it.\n"})
                self.assert_one("common/README.md:3: [word]")

    def test_words_within_others_pass(self):
        self.write({"common/README.md": "mkstemp XXXXXX, network/ build/work/x therefor nowhere kTodoList\n"})
        self.assert_clean()

    def test_cpp_constructs(self):
        for code, where in (("using " + "namespace std;", "common/a.cc"), ("void F() { std::" + "cout << 1; }", "worker/plan/a.cc"),
                            ("#if" + "def A\n#endif", "worker/plan/a.cc"), ("# if 1\n#endif", "kernels/cpu/a.cc")):
            with self.subTest(code=code):
                self.setUp()
                self.write_built(where, "\n" + code + "\n")
                self.assert_one(f"{where}:2: [word]")

    def test_cpp_constructs_where_they_belong(self):
        self.write_built("client/a.cc", "void F() { std::cout << 1; }\n")
        self.write_built("common/a.cc", "#ifdef __linux__\n#endif\n// using " + "namespace, in a comment\n")
        self.assert_clean()


class ContentTest(TidyTest):
    def test_binary_file(self):
        self.write({"common/a.dat": b"\x00\x01"})
        self.assert_one("common/a.dat:1: [content]", "no UTF-8 text")
        self.write({"common/a.dat": b"\xff\xfe"})
        self.assert_one("no UTF-8 text")

    def test_large_file(self):
        self.write({"common/a.txt": "x" * 1_000_001})
        self.assert_one("common/a.txt:1: [content]", "1000001 bytes")

    def test_demo_weights_are_allowed(self):
        self.write({"deploy/demo-model/model.safetensors": b"\0" * 2_000_000, "deploy/demo-model/README.md": "#\n"})
        self.assert_clean()


if __name__ == "__main__":
    unittest.main()
