"""`pi_bench.py` in its parts: what it reads of a file and of a board, and when a run counts.

There is no board here: its files and its `vcgencmd` are stand-ins with what a Pi 4 and a Pi 5 are known to say.
"""

from __future__ import annotations

import ast
import math
import shutil
import struct
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pi_bench_program import script

from pillm.bench import pi_bench
from pillm.bench.pi_bench import Refused, Unknown
from pillm.bench.program import PATH
from pillm.core.events import silent
from pillm.history.document import Model
from pillm.llamacpp.gguf_file import describe


def test_it_is_one_file_of_the_standard_library_for_python_3_9():
    tree = ast.parse(PATH.read_text(), feature_version=(3, 9))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    import sys

    assert {name.partition(".")[0] for name in names} <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("version", ["3.9", "3.10", "3.11", "3.12", "3.13", "3.14"])
def test_its_self_test_passes_under_every_python_that_is_here(version, tmp_path):
    # Alone, as on a board: nothing of pillm beside it.
    alone = shutil.copy(PATH, tmp_path / "pi_bench.py")
    pyenv = sorted((Path.home() / ".pyenv/versions").glob(f"{version}.*/bin/python3"))
    python = pyenv[-1] if pyenv else shutil.which(f"python{version}")
    done = python and subprocess.run([python, "-W", "error", alone, "--self-test"], capture_output=True, text=True)
    if not done or "not installed" in done.stderr or "command not found" in done.stderr:
        pytest.skip(f"there is no Python {version} on PATH or in pyenv")
    # 3: all is right but there is no llama.cpp on PATH.
    assert done.returncode in (0, 3), done.stdout + done.stderr
    assert "FAIL  " not in done.stdout.replace("FAIL  llama-", "")
    assert "ok    cut GGUF files" in done.stdout
    assert done.stderr == ""


# --- The model file


@pytest.mark.model
def test_the_header_says_what_llamacpp_reserves(smollm2_gguf):
    absent: dict[str, str] = {}
    found = pi_bench.model_of(smollm2_gguf, absent, pi_bench.Screen("none"))
    described = describe(smollm2_gguf)
    # llama.cpp prints: 4096 cells, 30 layers: 90.00 MiB of keys and values.
    assert found["kv_bytes_per_token"] * 4096 == 90 * 2**20
    # The embedding is the output head too: everything is read.
    assert found["read_bytes"] == found["weight_bytes"] == described.tensor_bytes
    assert found["types"] == described.bytes_by_type
    assert (found["parameters"], found["vocabulary"], found["width"]) == (described.parameters, 49_152, 576)
    assert (found["name"], found["architecture"]) == (described.name, "llama")
    assert absent == {}


def made(names: dict[str, tuple[int, ...]], **metadata: int) -> dict[str, object]:
    """What the program tells of a model with these F16 tensors."""
    tensors = [pi_bench.Tensor(name, "F16", shape, 2 * shape[0] * shape[1]) for name, shape in names.items()]
    values = {f"x.{key.replace('__', '.')}": value for key, value in metadata.items()}
    return pi_bench.facts({"general.architecture": "x", **values}, tensors)


def test_an_input_embedding_of_its_own_is_not_read():
    both = made({"token_embd.weight": (4, 10), "output.weight": (4, 10), "blk.0.attn_k.weight": (4, 2)})
    assert (both["weight_bytes"], both["read_bytes"], both["kv_bytes_per_token"]) == (176, 96, 4)


def test_of_a_mixture_only_the_experts_in_use_are_read():
    mixture = made(
        {"blk.0.ffn_up_exps.weight": (4, 80), "output_norm.weight": (4, 1)}, expert_count=8, expert_used_count=2
    )
    assert mixture["read_bytes"] == 8 + 640 // 4


def test_fused_projections_fall_back_on_the_header():
    fused = made({"blk.0.attn_qkv.weight": (64, 192)}, block_count=3, embedding_length=64, attention__head_count=8,
                 attention__head_count_kv=2)  # fmt: skip
    assert fused["kv_bytes_per_token"] == 3 * 2 * (8 + 8) * 2


def test_types_are_those_of_the_gguf_package():
    from gguf.constants import GGML_QUANT_SIZES

    known = {number: (kind, block, size) for number, (kind, block, size) in pi_bench._TYPES.items()}
    assert known == {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}


@pytest.mark.model
@pytest.mark.parametrize("size", [0, 3, 4, 100, 4096, 1_000_000, 98_362_431])
def test_a_cut_file_is_refused_in_plain_words(smollm2_gguf, tmp_path, size, pi_bench):
    cut = tmp_path / "cut.gguf"
    with smollm2_gguf.open("rb") as source:
        cut.write_bytes(source.read(size))
    done = pi_bench("--model", cut, "--json")
    assert done.returncode == 2
    assert "cut.gguf: " in done.stderr
    assert "not a GGUF file" in done.stderr or "cut off or damaged" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_damaged_header_is_refused(tmp_path):
    whole = bytearray(pi_bench._sample_gguf())
    for place, value in ((4, 99), (24, 0xFF)):
        damaged = bytearray(whole)
        damaged[place] = value
        with pytest.raises(Refused, match=r"sample\.gguf"):
            pi_bench.read_header(Path("sample.gguf"), bytes(damaged), len(damaged))


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf(values: dict[str, bytes], shape: tuple[int, ...] = (32, 4)) -> bytes:
    """A file of these metadata (kind and value as bytes) and one Q8_0 tensor of keys."""
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, len(values))
    for name, value in values.items():
        header += text(name) + value
    header += text("blk.0.attn_k.weight") + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 8, 0)
    return header + b"\0" * (-len(header) % 32) + b"\1" * (4 * 34)


LLAMA = struct.pack("<I", 8) + text("llama")


@pytest.mark.parametrize(
    "data",
    [
        gguf({"general.alignment": struct.pack("<I", 8) + text("x")}),
        gguf({}, ()),
        gguf({}, (32,)),
        gguf({"a": struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000}),
        gguf({"general.architecture": LLAMA, "llama.attention.head_count": struct.pack("<If", 6, math.inf)}),
        gguf({"general.architecture": LLAMA, "llama.attention.head_count": struct.pack("<If", 6, math.nan)}),
    ],
    ids=["alignment", "0 dimensions", "1 dimension", "nested arrays", "inf heads", "nan heads"],
)
def test_a_header_that_makes_no_sense_is_refused(tmp_path, data):
    path = tmp_path / "odd.gguf"
    path.write_bytes(data)
    with pytest.raises(Refused, match=r"odd\.gguf: the file is cut off or damaged"):
        pi_bench.model_of(path, {}, pi_bench.Screen("none"))


def test_a_name_that_is_a_number_is_no_name(tmp_path):
    number = struct.pack("<II", 4, 7)
    path = tmp_path / "odd.gguf"
    path.write_bytes(gguf({"general.name": number, "general.architecture": number, "tokenizer.ggml.tokens": LLAMA}))
    absent: dict[str, str] = {}
    found = pi_bench.model_of(path, absent, pi_bench.Screen("none"))
    assert (found["name"], found["architecture"], found["vocabulary"]) == (None, None, 0)
    assert {"model.name", "model.architecture"} <= set(absent)
    msgspec.convert(found, Model)


def test_an_embedding_for_each_layer_is_only_looked_up():
    gemma = made({"per_layer_token_embd.weight": (4, 10), "token_embd.weight": (4, 5)})
    assert (gemma["weight_bytes"], gemma["read_bytes"]) == (120, 40)


# --- The board


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """An empty machine: none of the kernel's files is there."""
    monkeypatch.setattr(pi_bench, "ROOT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path


def put(root: Path, path: str, data: str | bytes) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(data if isinstance(data, bytes) else data.encode())


def pi5(root: Path) -> None:
    put(root, "proc/device-tree/model", b"Raspberry Pi 5 Model B Rev 1.0\0")
    put(root, "proc/device-tree/system/linux,revision", struct.pack(">I", 0xC04170))
    put(
        root,
        "proc/meminfo",
        "MemTotal: 4148000 kB\nMemAvailable: 3500000 kB\nSwapTotal: 204784 kB\nSwapFree: 204000 kB\n",
    )
    put(root, "proc/vmstat", "pgpgin 1\npswpin 5\npswpout 7\n")
    put(
        root,
        "proc/cpuinfo",
        "processor\t: 0\nBogoMIPS\t: 108.00\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\nRevision\t: c04170\n",
    )
    put(root, "etc/os-release", 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n')
    put(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "ondemand\n")
    put(root, "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq", "2400000\n")
    put(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "1500000\n")
    put(root, "sys/class/thermal/thermal_zone0/type", "cpu-thermal\n")
    put(root, "sys/class/thermal/thermal_zone0/temp", "48300\n")
    put(root, "sys/block/zram0/mm_stat", "4096 74 12288 0 12288 0 0 0 0\n")


def test_a_pi_5_is_read_from_its_files(root):
    pi5(root)
    absent: dict[str, str] = {}
    about = pi_bench.board(absent, None)
    assert (about["model"], about["revision"], about["cpu"]) == (
        "Raspberry Pi 5 Model B Rev 1.0",
        "c04170",
        "Cortex-A76",
    )
    assert (about["governor"], about["max_mhz"], about["ram_bytes"]) == ("ondemand", 2400.0, 4_148_000 * 1024)
    assert about["os"] == "Debian GNU/Linux 12 (bookworm)"
    now = pi_bench.state(absent, "before", 0.0)
    assert (now["temperature_c"], now["clock_mhz"], now["swapped_pages"]) == (48.3, 1500.0, 12)
    assert (now["swap_used_bytes"], now["zram_bytes"]) == (784 * 1024, 12288)


def test_of_a_machine_without_any_of_it_every_null_has_its_reason(root):
    absent: dict[str, str] = {}
    about, now = pi_bench.board(absent, None), pi_bench.state(absent, "before", 0.0)
    nulls = {f"board.{name}" for name, value in about.items() if value is None}
    nulls |= {f"before.{name}" for name, value in now.items() if value is None}
    assert {"board.model", "board.cpu", "before.temperature_c", "before.throttled", "before.power_w"} <= nulls
    assert nulls <= set(absent)
    assert absent["before.throttled"] == "there is no vcgencmd on this machine"
    assert absent["board.governor"].endswith("scaling_governor: No such file or directory")
    assert all(absent.values())


def test_a_file_that_may_not_be_read_or_says_nonsense_is_null_with_the_reason(root, monkeypatch):
    pi5(root)
    put(root, "sys/class/thermal/thermal_zone0/temp", "hot\n")
    put(root, "proc/vmstat", "nothing\n")

    def denied(path: str) -> str:
        raise PermissionError(13, "Permission denied", f"/{path}")

    absent: dict[str, str] = {}
    now = pi_bench.state(absent, "before", 0.0)
    assert now["swapped_pages"] is None
    assert "KeyError" in absent["before.swapped_pages"]
    assert "no zone that can be read" in absent["before.temperature_c"]
    # Root may read everything, so the refusal is put in by hand.
    monkeypatch.setattr(pi_bench, "read_text", denied)
    pi_bench.board(absent, None)
    assert absent["board.governor"].endswith("scaling_governor: Permission denied")


VCGENCMD = """#!/bin/sh
# A stand-in for the firmware's tool: what a Pi 5 prints.
case "$1" in
  get_throttled) echo "throttled=${THROTTLED:-0x0}";;
  measure_temp) echo "temp=61.2'C";;
  pmic_read_adc) printf '  3V7_WL_SW_A current(0)=0.10000000A\\n  VDD_CORE_A current(7)=2.00000000A\\n'
    printf '  3V7_WL_SW_V volt(8)=3.70000000V\\n  VDD_CORE_V volt(15)=0.90000000V\\n  EXT5V_V volt(24)=5.10000000V\\n';;
  *) echo "error=2 error_msg=Command not registered"; exit 255;;
esac
"""


def test_vcgencmd_tells_throttling_temperature_and_power(root, monkeypatch):
    script(root / "bin/vcgencmd", VCGENCMD)
    monkeypatch.setenv("THROTTLED", "0x50005")
    absent: dict[str, str] = {}
    now = pi_bench.state(absent, "before", 0.0)
    assert now["throttled"] == 0x50005
    assert now["temperature_c"] == 61.2
    # 0.1 A at 3.7 V and 2 A at 0.9 V; the rail without a current is not in the sum.
    assert now["power_w"] == pytest.approx(2.17)
    assert "before.throttled" not in absent


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        (
            "#!/bin/sh\necho 'VCHI initialization failed' >&2; exit 255\n",
            "vcgencmd get_throttled: VCHI initialization failed",
        ),
        ("#!/bin/sh\necho 'Can not open device file: /dev/vcio' ; exit 1\n", "Can not open device file: /dev/vcio"),
        ("#!/bin/sh\necho nonsense\n", "it cannot be read: ValueError"),
        ("#!/nowhere\n", "vcgencmd cannot be started"),
    ],
)
def test_a_vcgencmd_that_fails_is_a_reason(root, says, reason):
    script(root / "bin/vcgencmd", says)
    absent: dict[str, str] = {}
    assert pi_bench.state(absent, "during", 0.0)["throttled"] is None
    assert reason in absent["during.throttled"]


def test_vcgencmd_is_asked_before_the_kernel_s_file_which_may_be_old(root, monkeypatch):
    put(root, "sys/devices/platform/soc/soc:firmware/get_throttled", "50000\n")
    assert pi_bench._throttled() == 0x50000
    script(root / "bin/vcgencmd", VCGENCMD)
    monkeypatch.setenv("THROTTLED", "0x4")
    assert pi_bench._throttled() == 0x4


def test_a_long_run_keeps_few_states_and_all_throttling(root, monkeypatch):
    """Time is cut short, and the firmware tells each bit once, at one look only."""
    looks = 0
    at = {3: 0x10000, 150: 0x20000, 201: 0x1, 230: 0x80000}
    ended = threading.Event()

    def throttled() -> int:
        nonlocal looks
        looks += 1
        if looks == 231:
            ended.set()
        return at.get(looks, 0)

    monkeypatch.setattr(pi_bench, "SAMPLE_S", 0.001)
    monkeypatch.setattr(pi_bench, "_throttled", throttled)
    found: list[dict[str, Any]] = []
    with pi_bench.sampling({}, 0.0, found):
        assert ended.wait(60)
    assert len(found) < 200
    seen = 0
    for moment in found:
        seen |= moment["throttled"]
    assert seen == 0xB0001


def test_what_was_seen_after_the_last_state_is_in_it(monkeypatch):
    """Each look from the 202nd on tells a bit; the run ends before the next state is kept."""
    looks = 0
    ended = threading.Event()

    def throttled() -> int:
        nonlocal looks
        looks += 1
        if looks == 201:
            ended.set()
            # The run ends during this look.
            time.sleep(0.2)
            return 0x4
        return 0

    monkeypatch.setattr(pi_bench, "SAMPLE_S", 0.001)
    monkeypatch.setattr(pi_bench, "_throttled", throttled)
    monkeypatch.setattr(pi_bench, "state", lambda absent, moment, began: {"throttled": pi_bench._throttled()})
    found: list[dict[str, Any]] = []
    with pi_bench.sampling({}, 0.0, found):
        assert ended.wait(60)
    assert len(found) == 100
    assert found[-1]["throttled"] == 0x4


def test_a_board_without_pmic_has_no_power(root):
    with pytest.raises(Unknown, match="no PMIC"):
        pi_bench.pmic_watts("EXT5V_V volt(24)=5.1V\n")


def test_features_are_those_of_the_process_and_not_of_cpuinfo():
    a72 = struct.pack("=QQQQ", 16, 0b1111_1111, 26, 0)
    a76 = struct.pack("=QQQQ", 16, 0b1111_1111 | 1 << 9 | 1 << 10 | 1 << 20, 26, 0)
    assert "asimddp" not in pi_bench.features_of(a72)
    assert {"asimddp", "fphp", "asimdhp"} <= set(pi_bench.features_of(a76))


def test_a_32_bit_process_is_told_other_bits():
    # Linux, arch/arm/include/uapi/asm/hwcap.h: a Cortex-A76 in 32 bits has NEON, FPHP, ASIMDHP and ASIMDDP.
    a76 = struct.pack("=IIII", 16, 1 << 12 | 1 << 22 | 1 << 23 | 1 << 24, 26, 0b11111)
    assert pi_bench.features_of(a76, 4) == ["neon", "fphp", "asimdhp", "asimddp"]
    a72 = struct.pack("=IIII", 16, 1 << 1 | 1 << 9 | 1 << 12 | 1 << 20, 26, 0b11111)
    assert pi_bench.features_of(a72, 4) == ["neon"]


def test_arm_programs_on_another_processor_are_emulated(root, monkeypatch):
    monkeypatch.setattr(pi_bench.platform, "machine", lambda: "aarch64")
    monkeypatch.setenv("QEMU_CPU", "cortex-a76")
    put(root, "proc/cpuinfo", "vendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R)\nflags\t\t: fpu avx2\n")
    put(root, "proc/sys/kernel/arch", "x86_64\n")
    assert pi_bench.find_emulation() == "qemu-user as cortex-a76 on x86_64"
    absent: dict[str, str] = {}
    put(root, "proc/self/auxv", struct.pack("=QQ", 16, 1 << 1))
    about = pi_bench.board(absent, "qemu-user")
    assert (about["cpu"], about["features"]) == (None, ["asimd"])
    assert "emulated" in absent["board.cpu"]
    pi5(root)
    put(root, "proc/sys/kernel/arch", "aarch64\n")
    assert pi_bench.find_emulation() is None


# --- Whether a run counts


def moment(throttled: int | None = 0, swapped: int | None = 0) -> dict[str, int | None]:
    return {"throttled": throttled, "swapped_pages": swapped}


def test_a_quiet_run_counts():
    assert pi_bench.verdict(moment(), [moment()], moment()) == ([], [], [])


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (0x1, "under-voltage now (seen during the run)"),
        (0x2, "clock capped now (seen during the run)"),
        (0x4, "throttled now (seen during the run)"),
        (0x8, "soft temperature limit now (seen during the run)"),
        (0x10000, "under-voltage has occurred during the run"),
        (0x40000, "throttling has occurred during the run"),
    ],
)
def test_any_throttling_of_the_run_makes_it_invalid(seen, reason):
    invalid, _, words = pi_bench.verdict(moment(), [moment(seen)], moment())
    assert invalid == [reason]
    assert len(words) == 1


def test_what_the_bits_tell_twice_is_said_once():
    invalid, warnings, words = pi_bench.verdict(moment(), [moment(0x50005)], moment(0x50000))
    assert invalid == ["under-voltage now (seen during the run)", "throttled now (seen during the run)"]
    assert warnings == []
    assert len(words) == 4


def test_throttling_before_the_run_is_only_a_warning():
    invalid, warnings, _ = pi_bench.verdict(moment(0x50000), [moment(0x50000)], moment(0x50000))
    assert invalid == []
    assert warnings == [
        "since the board started, but before this run: under-voltage has occurred, throttling has occurred; "
        "a further event of that kind during the run, between two looks, could not be seen"
    ]


def test_a_bit_that_was_cleared_and_came_again_is_of_this_run():
    invalid, warnings, _ = pi_bench.verdict(moment(0x10000), [moment(0), moment(0x10000)], moment(0x10000))
    assert invalid == ["under-voltage has occurred during the run"]
    assert warnings == []


def test_a_run_that_swapped_is_invalid_and_a_few_pages_are_a_warning():
    invalid, _, _ = pi_bench.verdict(moment(swapped=100), [], moment(swapped=100 + 257))
    assert invalid == ["the machine swapped: 257 pages of memory went to or from swap during the run"]
    invalid, warnings, _ = pi_bench.verdict(moment(swapped=100), [], moment(swapped=356))
    assert (invalid, len(warnings)) == ([], 1)


def test_what_cannot_be_seen_is_not_held_against_a_run():
    assert pi_bench.verdict(moment(None, None), [moment(None, None)], moment(None, None)) == ([], [], [])


def test_an_emulated_run_never_counts():
    assert pi_bench.verdict(moment(), [], moment(), "qemu-user")[0] == ["the processor is emulated (qemu-user)"]


# --- Small readers


@pytest.mark.parametrize(
    ("line", "variant"),
    [
        ("load_backend: loaded CPU backend from /opt/x/libggml-cpu-armv8.0_1.so", "armv8.0_1"),
        ("0.00.001.2 I load_backend: loaded CPU backend from /a b/libggml-cpu-armv8.2_2.so", "armv8.2_2"),
        ("load_backend: loaded CPU backend from ./libggml-cpu-haswell.so", "haswell"),
        ("load_backend: loaded CPU backend from ./libggml-cpu.so", "cpu"),
        ("load_backend: loaded Vulkan backend from ./libggml-vulkan.so", None),
        ("load_backend: failed to load x", None),
    ],
)
def test_the_cpu_variant_is_in_llamacpp_s_own_line(line, variant):
    assert pi_bench.variant_of(line) == variant


def test_the_line_is_still_in_the_pinned_source():
    from pillm.llamacpp import pin
    from pillm.llamacpp.install import ensure

    ensure(silent)
    source = (pin.source_dir() / "ggml/src/ggml-backend-reg.cpp").read_text()
    assert "ggml_backend_load_best" in source
    assert '"%s: loaded %s backend from %s\\n", __func__' in source
    assert "load_backend(const fs::path & path, bool silent)" in source


def test_pages_of_a_file_are_counted_and_dropped(tmp_path):
    file = tmp_path / "data"
    file.write_bytes(b"x" * 4_000_000)
    file.read_bytes()
    assert pi_bench.resident_share(file) == pytest.approx(1.0, abs=0.01)
    try:
        pi_bench.drop_from_cache(file)
    except Unknown as error:
        pytest.skip(f"this folder's file system keeps its files in memory: {error}")
    assert pi_bench.resident_share(file) < 0.02
    assert file.read_bytes() == b"x" * 4_000_000


def test_a_file_in_memory_cannot_be_measured_cold(small_disk):
    file = small_disk / "data"
    file.write_bytes(b"x" * 500_000)
    with pytest.raises(Unknown, match="stayed in the page cache"):
        pi_bench.drop_from_cache(file)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("1000000", 10**6), ("900MB", 9 * 10**8), ("1.5GiB", 3 * 2**29), ("2k", 2000), ("512 MiB", 2**29)],
)
def test_sizes(text, wanted):
    assert pi_bench.bytes_of(text) == wanted
