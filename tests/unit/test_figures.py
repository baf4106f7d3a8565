from engine.figures import BOUNDS_S, WINDOW_S, Histogram, LoopLag, quantile


def test_a_duration_counts_in_the_first_bucket_that_holds_it() -> None:
    histogram = Histogram()
    for seconds in (0.0, 0.001, 0.0011, 10_000.0):
        histogram.add(seconds)
    counts = histogram.report()["counts"]
    assert (counts[0], counts[BOUNDS_S.index(0.001)], counts[BOUNDS_S.index(0.0025)]) == (1, 1, 1)
    assert counts[-1] == 1
    assert sum(counts) == 4
    assert histogram.report()["sum_s"] == 0.0 + 0.001 + 0.0011 + 10_000.0


def test_a_quantile_is_the_upper_end_of_its_bucket() -> None:
    histogram = Histogram()
    for _ in range(98):
        histogram.add(0.04)
    for _ in range(2):
        histogram.add(7.0)
    assert quantile(histogram.counts, 0.5) == 0.05
    assert quantile(histogram.counts, 0.99) == 10.0


def test_a_quantile_of_nothing_is_none_and_past_the_last_bound_infinite() -> None:
    histogram = Histogram()
    assert quantile(histogram.counts, 0.5) is None
    histogram.add(1e6)
    assert quantile(histogram.counts, 0.5) == float("inf")


def test_the_worst_turn_is_told_for_a_window_and_then_forgotten() -> None:
    lag = LoopLag()
    lag.took(0.4, 1.0)
    lag.took(0.1, 2.0)
    assert lag.worst_s == 0.4
    lag.took(0.1, 1.0 + WINDOW_S)
    assert lag.worst_s == 0.4
    lag.took(0.2, 1.0 + 2 * WINDOW_S)
    assert lag.worst_s == 0.2
