"""Memory of the machine and of its container, and amounts in words."""

from decomp.pipelines.console.parse import memory_bytes
from decomp.pipelines.measure import memory
from decomp.pipelines.measure.memory import GIB, MIB, as_text, rounded_up


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


def test_a_least_amount_in_words_is_never_less_than_it():
    for n_bytes in (1, 100 * MIB, GIB, GIB + 1, 1.2 * GIB, 12.34 * GIB):
        assert n_bytes <= memory_bytes(rounded_up(n_bytes)) < n_bytes + 0.11 * GIB
    assert as_text(GIB // 2) == "512MiB" and as_text(3 * GIB) == "3GiB"
