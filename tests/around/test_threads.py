"""The benchmark of threads that wait for each other."""

from benchmarks import threads


def test_the_ratios_are_medians_over_the_seconds_of_one_thread(monkeypatch, capsys):
    times, ways = iter([2.0, 3.0, 8.0, 4.0, 4.0, 4.0, 1.0, 1.0, 5.0]), []
    monkeypatch.setattr(threads, "seconds", lambda *way: ways.append(way) or next(times))
    monkeypatch.setattr("sys.argv", ["threads", "--rounds", "3"])
    threads.main()
    assert capsys.readouterr().out.splitlines() == [
        "1            1.00",
        "2, passive   1.00",
        "2, active    4.00",
    ]
    assert ways[:3] == [
        ("neo-mini", *way) for way in (("1", "passive"), ("2", "passive"), ("2", "active"))
    ]


def test_the_steps_are_timed_in_a_process_of_their_own(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert threads.seconds("neo-mini", "1", "passive") > 0
