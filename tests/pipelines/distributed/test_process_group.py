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
