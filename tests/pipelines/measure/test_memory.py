"""Memory and disk that a process may use, least needs, and amounts in words."""

from types import SimpleNamespace

import pytest
import torch

from decomp.errors import UsageError
from decomp.pipelines.console.parse import memory_bytes
from decomp.pipelines.measure import memory
from decomp.pipelines.measure.memory import (
    GIB,
    MIB,
    above_the_machine,
    as_text,
    available_disk,
    available_memory,
    memory_of_stage,
    rounded_up,
)  # fmt: skip

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def test_the_memory_of_the_machine_is_bounded_by_that_of_its_container(monkeypatch):
    container = {}

    def read_text(path):
        if str(path) not in container:
            raise FileNotFoundError(path)
        return container[str(path)]

    monkeypatch.setattr(memory.os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2 * GIB // 4096}.get)
    monkeypatch.setattr(memory.Path, "read_text", read_text)
    assert memory.machine_memory() == 2 * GIB
    container["/sys/fs/cgroup/memory.max"] = f"{GIB}\n"
    assert memory.machine_memory() == GIB
    container["/sys/fs/cgroup/memory.max"] = "max\n"
    assert memory.machine_memory() == 2 * GIB
    monkeypatch.delattr(memory.os, "sysconf")  # as on Windows
    assert memory.machine_memory() * memory.DEFAULT_SHARE == memory.DEFAULT_MEMORY


def test_a_process_has_its_limit_or_its_share_of_half_the_machine_and_no_more_than_a_gpu_has_free(monkeypatch):
    monkeypatch.setattr(memory, "machine_memory", lambda: 64 * GIB)
    assert (available_memory(None, CPU), available_memory(48 * GIB, CPU)) == (32 * GIB, 48 * GIB)
    monkeypatch.setattr(memory, "n_on_this_machine", lambda: 4)
    assert (available_memory(None, CPU), available_memory(48 * GIB, CPU)) == (8 * GIB, 48 * GIB)
    monkeypatch.setattr(memory, "gpu_memory", lambda device: 5 * GIB if device == GPU else None)
    assert (available_memory(None, GPU), available_memory(GIB, GPU)) == (4 * GIB, GIB)


def test_a_stage_has_its_least_need_at_any_rate_and_a_limit_below_it_is_refused(monkeypatch):
    calls = []
    monkeypatch.setattr(memory, "keep_freed_memory", lambda: calls.append("keep"))
    monkeypatch.setattr(memory, "return_freed_memory", lambda: calls.append("return"))
    monkeypatch.setattr(memory, "machine_memory", lambda: 2 * GIB)
    assert memory_of_stage(3 * GIB, None, CPU, command="train") == 3 * GIB and calls == ["keep"]
    assert memory_of_stage(GIB // 2, None, CPU, command="train") == GIB
    assert memory_of_stage(3 * GIB, 3 * GIB, CPU, command="train") == 3 * GIB and calls[1:] == ["keep", "return"]
    rule = r"^--memory: train needs at least 3GiB for these batches, got 2GiB; give --memory 3GiB\.$"
    with pytest.raises(UsageError, match=rule):
        memory_of_stage(3 * GIB - GIB // 20, 2 * GIB, CPU, command="train", subject="these batches")


def test_processes_divide_half_of_the_free_disk_of_a_folder_that_is_still_to_be_made(monkeypatch, tmp_path):
    there = []
    monkeypatch.setattr(memory.shutil, "disk_usage", lambda path: there.append(path) or SimpleNamespace(free=40 * GIB))
    monkeypatch.setattr(memory, "n_on_this_machine", lambda: 5)
    assert available_disk(tmp_path / "run" / "scratch") == 4 * GIB and there == [tmp_path]


def test_a_least_amount_in_words_is_never_less_than_it():
    for n_bytes in (1, 100 * MIB, GIB, GIB + 1, 1.2 * GIB, 12.34 * GIB):
        assert n_bytes <= memory_bytes(rounded_up(n_bytes)) < n_bytes + 0.11 * GIB
    assert as_text(GIB // 2) == "512MiB" and as_text(3 * GIB) == "3GiB"


@pytest.mark.parametrize("given", ["1KiB", "4GB", "512MiB", "1.5GiB", "2kB", "8GiB", "300MB"])
def test_an_amount_is_said_as_it_was_given(given):
    assert as_text(memory_bytes(given)) == given


def test_other_amounts_are_said_with_three_digits():
    assert as_text(10**9 + 1) == "1GB" and as_text(123456789) == "118MiB" and as_text(12) == "12 bytes"


def test_a_limit_above_the_memory_of_the_machine_is_warned_of(monkeypatch):
    monkeypatch.setattr(memory, "machine_memory", lambda: 4 * GIB)
    assert above_the_machine(None) == above_the_machine(4 * GIB) == ""
    assert above_the_machine(4 * GIB + MIB).startswith("--memory 4097MiB is more than this machine has, 4GiB:")
    assert above_the_machine(5000 * GIB) == (
        "--memory 5000GiB is more than this machine has, 4GiB: the work may be killed"
    )
