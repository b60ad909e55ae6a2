def test_only_the_first_process_writes_to_the_folder(jobs):
    first, second = jobs.call(2, "inside:copies")
    assert first["is it"] and not second["is it"]
    assert second["found"] == {"alone.json": False, "deep/small.txt": False, "large.bin": True}
    assert first["original"] in ("small", "written by 0") and second["original"] in ("small", "written by 0")
    assert first["files"] == [True, False] and second["files"] == [True, False]
    assert second["named"] == "original: bad"


def test_a_file_that_others_cannot_see_travels_to_them(jobs):
    assert jobs.call(2, "inside:sent") == [True, True]
