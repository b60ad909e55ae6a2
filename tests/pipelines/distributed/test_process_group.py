from pytest import approx


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
    assert [one["from"] for one in found] == [[1]] * 3 and found[2]["to"] == [3.0]
    assert found[0]["ranges"] == [[0, 1], [2, 3], [4, 5, 6]]


def test_several_processes_cut_the_tiles_of_one(jobs):
    found = jobs.call(3, "inside:tiles_together")
    alone = found[0]["alone"]
    assert len(alone) == 6 + 2
    for fitted in (True, False):
        together = [tile for one in found for tile in one["found"] if tile[0] is fitted]
        assert together == [tile for tile in alone if tile[0] is fitted]
    assert all(one["found"] for one in (found[0], found[2])) and found[1]["found"] == []
