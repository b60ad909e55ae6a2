import pytest
from pytest import approx

from decomp.pipelines.distributed import process_group


def test_sums_are_those_of_all_processes_and_values_of_the_first_reach_all(jobs):
    both = jobs.call(2, "inside:sums")
    for found in both:
        assert found["count"] == 2
        assert found["total"] == approx(1.2, rel=1e-15)
        assert found["summed"] == [2.0, 1.0]
        assert found["gathered"] == [{"rank": 0}, {"rank": 1}]
        assert found["first"] == "made by 0"
    assert both[0]["range"] + both[1]["range"] == [0, 1, 2, 3, 4] and len(both[1]["range"]) == 3
    assert sorted(found["said"] for found in both) == [False, True]


def test_one_process_has_all_of_the_work(jobs):
    (found,) = jobs.call(1, "inside:sums")
    assert found["count"] == 1 and found["total"] == 0.1 and found["range"] == [0, 1, 2, 3, 4] and found["said"]


def test_a_value_goes_from_one_process_to_another_and_a_sum_to_one(jobs):
    found = jobs.call(3, "inside:values_of_others")
    assert [one["handed"] for one in found] == [[2, None], [None, 1], [None, None]]
    assert [one["from"] for one in found] == [[1]] * 3 and found[2]["to"] == [3.0, 6.0, 9.0, 3.0]
    assert all(one["joined"] == [[1.0, 1.0], [2.0, 2.0], [2.0, 2.0]] for one in found)
    assert found[0]["ranges"] == [[0, 1], [2, 3], [4, 5, 6]]


def test_several_processes_cut_the_tiles_of_one(jobs):
    found = jobs.call(3, "inside:tiles_together")
    alone = found[0]["alone"]
    assert len(alone) == 6 + 2
    for fitted in (True, False):
        together = [tile for one in found for tile in one["found"] if tile[0] is fitted]
        assert together == [tile for tile in alone if tile[0] is fitted]
    assert all(one["found"] for one in (found[0], found[2])) and found[1]["found"] == []


def test_a_mistake_that_the_first_process_finds_is_raised_in_all(jobs):
    first, other = jobs.call(2, "inside:mistakes")
    line = "speedup: at most 4.00x can be reached on this network in multiply-accumulates, got 8x; lower the target."
    assert first == [["OutOfReach", line], ["UsageError", "plan: must fit, got a; mend it."]]
    assert other == [["TargetError", line], ["UsageError", "plan: must fit, got a; mend it."]]


def test_a_share_of_images_is_of_whole_batches_of_one_process(monkeypatch):
    monkeypatch.setattr(process_group, "count", lambda: 3)
    shares = [process_group.batches_of(rank, 25, 4) for rank in range(3)]
    assert shares == [range(0, 8), range(8, 16), range(16, 25)]
    assert [process_group.batches_of(rank, 3, 4) for rank in range(3)] == [range(0), range(0), range(3)]


def test_each_process_lists_and_tries_its_share_of_the_files_and_reads_its_own_images(jobs):
    pytest.importorskip("webdataset")
    both = jobs.call(2, "inside:files_read")
    for kind in ("imagefolder", "webdataset"):
        one, other = (found[kind] for found in both)
        assert one["listed"] == other["listed"] and len(one["listed"]) == 12
        assert one["skipped"] == other["skipped"] == (["train/class2/99.png"] if kind == "imagefolder" else [])
        assert one["read"] == other["read"] == 6
        assert other["mean"] - one["mean"] == approx(6 * 20 / 255 / 0.2256, rel=0.05)  # over about the std of ImageNet
    # Half of the 12 images are looked at for their size, and read once.
    assert [found["webdataset"]["tried"] for found in both] == [6 + 6, 6 + 6]
    assert [sorted(found["webdataset"]["tars"]) for found in both] == [
        ["shards-0.tar", "shards-1.tar"], ["shards-2.tar", "shards-3.tar"],
    ]  # fmt: skip
