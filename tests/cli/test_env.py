"""`ktops env` and `ktops version`: facts to paste, without secrets and without imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ktops.commands.env import describe
from ktops.masking import MASK, mask_text, masked
from ktops.report.text import report_lines
from ktops_doctor.recorded_host import RecordedHost

GIB = 1 << 30
BARE = {
    "platform": {"system": "Linux", "machine": "x86_64", "kernel": "6.8.0", "libc": ""},
    "python": {
        "version": [3, 12, 3],
        "executable": "/opt/ktops/bin/python",
        "prefix": "/opt/ktops",
        "base_prefix": "/usr",
    },
    "cpus_allowed": "0-3",
}
SMI = """<?xml version="1.0" ?><nvidia_smi_log>
<driver_version>535.161.08</driver_version><cuda_version>12.2</cuda_version>
<gpu><product_name>NVIDIA L40S</product_name>
<pci><pci_gpu_link_info>
<pcie_gen><max_link_gen>4</max_link_gen><current_link_gen>1</current_link_gen></pcie_gen>
<link_widths><max_link_width>16x</max_link_width><current_link_width>8x</current_link_width>
</link_widths></pci_gpu_link_info></pci>
<fb_memory_usage><total>49140 MiB</total><free>48782 MiB</free></fb_memory_usage>
</gpu></nvidia_smi_log>"""


def two_sockets() -> dict:
    """Two sockets of two cores with two threads, as /proc and /sys show them."""
    files = {
        "/etc/os-release": 'PRETTY_NAME="Ubuntu 24.04.1 LTS"\n',
        "/proc/cpuinfo": "model name\t: Intel(R) Xeon(R)\nflags\t\t: fpu avx2 amx_int8\n",
        "/proc/meminfo": f"MemTotal: {64 * GIB >> 10} kB\nMemAvailable: {60 * GIB >> 10} kB\n"
        f"HugePages_Total:       8\nHugepagesize:       2048 kB\n"
        f"SwapTotal: {4 * GIB >> 10} kB\nSwapFree: {GIB >> 10} kB\n",
        "/proc/self/cgroup": "0::/box\n",
        "/sys/fs/cgroup/box/memory.max": f"{16 * GIB}\n",
        "/sys/fs/cgroup/box/memory.current": f"{2 * GIB}\n",
        "/sys/fs/cgroup/box/cpu.max": "250000 100000\n",
        "/sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
        "/sys/devices/system/cpu/online": "0-7\n",
        "/opt/ktops/bin/cmake": "",
    }
    for cpu in range(8):
        folder = f"/sys/devices/system/cpu/cpu{cpu}"
        core = cpu % 4
        files[f"{folder}/topology/thread_siblings_list"] = f"{core},{core + 4}\n"
        files[f"{folder}/topology/physical_package_id"] = f"{core // 2}\n"
        files[f"{folder}/cache/index0/level"] = "1\n"
        files[f"{folder}/cache/index0/type"] = "Data\n"
        files[f"{folder}/cache/index0/size"] = "48K\n"
        files[f"{folder}/cache/index0/shared_cpu_list"] = f"{core},{core + 4}\n"
    for node in range(2):
        files[f"/sys/devices/system/node/node{node}/cpulist"] = f"{2 * node}-{2 * node + 1}\n"
        files[f"/sys/devices/system/node/node{node}/meminfo"] = f"Node MemTotal: {32 << 20} kB\n"
    return BARE | {
        "files": files,
        "programs": {"g++": "/usr/bin/g++", "nvidia-smi": "/usr/bin/nvidia-smi"},
        "commands": {
            "nvidia-smi -q -x": {"status": 0, "stdout": SMI},
            "/usr/bin/g++ --version": {"status": 0, "stdout": "g++ (Ubuntu) 13.2.0\nCopyright\n"},
            "/opt/ktops/bin/cmake --version": {"status": 1, "stderr": "no module named cmake"},
        },
        "packages": {"torch": "2.13.0+cu130"},
        "probes": {
            "native": {
                "facts": {
                    "built": True,
                    "path": "/cache/libktops.so",
                    "numa": True,
                    "compiler": "g++ 13.2.0",
                    "built_at": "2026-11-20T10:00:00+00:00",
                    "isa": "amx",
                    "isa_available": ["scalar", "amx"],
                }
            }
        },
    }


def report_of(record: dict, environ: dict | None = None) -> tuple[dict, str]:
    report = describe(RecordedHost(record), environ or {})
    return report, "\n".join(report_lines(report))


def test_a_server_is_described_whole(work_dir):
    report, text = report_of(two_sockets())
    cpu = report["cpu"]
    assert (cpu["sockets"], cpu["cores"], cpu["threads"]) == (2, 4, 8)
    assert (cpu["usable_cores"], cpu["usable_threads"], cpu["quota_cpus"]) == (4, 4, 2.5)
    assert cpu["caches"] == [{"name": "L1d", "bytes": 48 << 10, "count": 4}]
    assert cpu["flags"] == ["avx2", "amx_int8"]
    assert report["numa_nodes"][1] == {"node": 1, "cpus": "2-3", "memory_bytes": 32 * GIB}
    assert report["gpu"]["devices"][0]["pcie_max_lanes"] == 16
    for line in (
        "os           Ubuntu 24.04.1 LTS, kernel 6.8.0, x86_64",
        "             2 sockets, 4 cores, 8 threads; this process may use 4 cores, 4 threads",
        "             the control group grants 2.5 CPUs' worth of time",
        "memory       64 GiB, 60 GiB available",
        "             the control group allows 16 GiB, 2 GiB used",
        "             swap 4 GiB, 1 GiB free",
        "             huge pages 8 of 2 MiB, transparent: madvise",
        "gpu          NVIDIA L40S, 47.6 GiB of 48 GiB free, PCIe 4, 8 of 16 lanes",
        "             driver 535.161.08, CUDA 12.2",
        "tools        g++: g++ (Ubuntu) 13.2.0 (/usr/bin/g++)",
        "             cmake: does not work: no module named cmake",
        "packages     torch 2.13.0+cu130",
        "native       built",
        "             runs on amx; this machine can run scalar amx",
    ):
        assert f"\n{line}\n" in f"\n{text}\n"


def test_a_machine_that_tells_nothing_is_described_too(work_dir):
    report, text = report_of(BARE)
    assert report["cpu"]["threads"] == 4
    assert report["memory"]["total_bytes"] is None
    assert report["gpu"] == {"driver": None, "cuda": None, "problem": None, "devices": []}
    assert report["native"]["state"] == "broken"
    assert "unknown model" in text
    assert "\nnuma         none\n" in text


@pytest.mark.parametrize(
    ("facts", "state", "words"),
    [
        ({"built": False}, "missing", "missing or stale"),
        ({"built": False, "damaged": "/c/libktops.so"}, "broken", "/c/libktops.so is damaged"),
        ({"built": True, "path": "/c/x.so", "load_error": "truncated"}, "broken", "truncated"),
        ({"import_error": "ImportError: no numpy"}, "broken", "no numpy"),
    ],
)
def test_a_broken_native_library_is_reported_not_raised(work_dir, facts, state, words):
    report, text = report_of(BARE | {"probes": {"native": {"facts": facts}}})
    assert report["native"]["state"] == state
    assert words in text


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ({"status": 9, "stdout": "couldn't talk\nto the driver"}, "couldn't talk to the driver"),
        ({"status": None, "timed_out": True}, "nvidia-smi does not answer"),
        ({"status": 0, "stdout": "<nvidia_smi_log/>"}, "nvidia-smi names no GPU"),
    ],
)
def test_why_nvidia_smi_failed_is_said(work_dir, answer, problem):
    record = BARE | {
        "programs": {"nvidia-smi": "/bin/nvidia-smi"},
        "commands": {"nvidia-smi -q -x": answer},
    }
    assert problem in report_of(record)[1]


def test_a_gpu_without_a_driver_is_seen_on_the_bus(work_dir):
    gpu = "/sys/bus/pci/devices/0000:17:00.0"
    record = BARE | {"files": {f"{gpu}/vendor": "0x10de\n", f"{gpu}/class": "0x030200\n"}}
    assert "1 on the PCI bus, but nvidia-smi is not installed" in report_of(record)[1]


def test_the_report_of_this_machine_has_every_part(ktops):
    ran = ktops("env")
    assert (ran.status, ran.stderr) == (0, "")
    document = ktops("env", "--json").document
    for name in document.keys() - {"schema_version", "numa_nodes"}:
        assert f"\n{name} " in f"\n{ran.stdout}"
    assert document["cpu"]["usable_threads"] >= 1
    assert document["packages"]["typer"]
    assert document["settings"]["values"]["port"] == {"value": 10002, "origin": "default"}
    assert ktops("env", "-q").stdout.splitlines()[0] == ran.stdout.splitlines()[0]


def test_the_report_is_english_in_every_language(ktops):
    assert ktops("env", "--lang", "zh").stdout.isascii()


def test_secrets_are_masked_wherever_they_stand(ktops, work_dir, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_sesame")
    monkeypatch.setenv("KTOPS_API_KEY", "sesame1")
    monkeypatch.setenv("HF_ENDPOINT", "https://me:sesame2@mirror.example/x")
    monkeypatch.setenv("https_proxy", "me:sesame/3@proxy.example:3128")
    monkeypatch.setenv("KTOPS_PORT", "9000")
    monkeypatch.setenv("KTOPS_MAX_NEW_TOKENS", "77")
    for args in (["env"], ["env", "--json"], ["config", "show"], ["config", "show", "--json"]):
        text = ktops(*args).stdout
        assert "sesame" not in text
        assert "9000" in text
        assert "77" in text
    text = ktops("env").stdout
    assert "https://***@mirror.example/x" in text
    assert "***@proxy.example:3128" in text
    api_key = ktops("env", "--json").document["settings"]["values"]["api_key"]
    assert api_key == {"value": MASK, "origin": "KTOPS_API_KEY"}


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("MODELSCOPE_API_TOKEN", "x", MASK),
        ("HF_HUB_AUTH", "x", MASK),
        ("KTOPS_MAX_NEW_TOKENS", "4096", "4096"),
        ("HTTPS_PROXY", "http://u:p@ss/w@proxy:80", "http://***@proxy:80"),
        ("all_proxy", "u:p@proxy:80", "***@proxy:80"),
        ("NO_PROXY", "localhost,127.0.0.1", "localhost,127.0.0.1"),
        ("LD_LIBRARY_PATH", "/a:/opt/gcc@13/lib", "/a:/opt/gcc@13/lib"),
        ("HF_ENDPOINT", "https://m.example/?access_token=abc&x=1", "https://m.example/?access_token=***&x=1"),
        ("KTOPS_DEFAULT_MODEL", "hf_abcdefgh1234", "hf_***"),
    ],
)  # fmt: skip
def test_a_value_is_shown_as_far_as_it_is_no_secret(name, value, shown):
    assert masked(name, value) == shown


def test_a_text_without_secrets_stays_as_it_is():
    words = "no such file: /data/models/r1 (errno 2), see https://example.org/a?b=c"
    assert mask_text(words) == words


def test_a_broken_configuration_is_reported_instead_of_failing(ktops, work_dir):
    (work_dir / "ktops.toml").write_text("prot = 1")
    ran = ktops("env")
    assert ran.status == 0
    assert "settings     broken: " in ran.stdout
    assert "did you mean 'port'" in ran.stdout


def test_env_imports_nothing_that_may_be_broken(ktops):
    code = (
        "import sys\nfrom ktops.cli import run\nrun(['env'])\n"
        "print(*sorted({'torch', 'numpy', 'transformers', 'psutil'} & set(sys.modules)),"
        " file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stderr.strip() == ""


def test_version_in_every_form(ktops):
    number = ktops("version", "-q").stdout.strip()
    assert ktops("version").stdout == f"ktops {number}\n"
    assert ktops("--version").stdout == f"ktops {number}\n"
    assert ktops("version", "--json").document["ktops"] == number
    assert ktops("--json", "version").document["ktops"] == number
    assert ktops("--version", "--json").document["ktops"] == number
    assert ktops("--version", "-q").stdout == f"{number}\n"
    assert ktops("-q", "version").stdout == f"{number}\n"
