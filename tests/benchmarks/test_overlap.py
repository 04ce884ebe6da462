"""What a trace says of how far the reduction hides behind the backward pass."""

from benchmarks.overlap import describe, merged, sums_of

BACKWARD = "autograd::engine::evaluate_function: ConvolutionBackward0"


def event(name, begin, end, category="cpu_op"):
    return {"ph": "X", "cat": category, "name": name, "ts": begin, "dur": end - begin}


def test_spans_are_merged_over_short_pauses():
    assert merged([(5, 6), (0, 2), (1, 3)]) == [(0, 3), (5, 6)]
    assert merged([(0, 2), (3, 4), (9, 10)], pause=1) == [(0, 4), (9, 10)]


def test_reductions_count_as_hidden_while_something_is_computed():
    events = [
        *(event(BACKWARD, begin, begin + 990) for begin in range(0, 10_000, 1000)),
        event("gloo:all_reduce", 4995, 6000, "user_annotation"),  # begins in a pause, and hides but for two of them
        event("gloo:all_reduce", 9500, 12_000, "user_annotation"),
        event("gloo:all_reduce", 15_000, 16_000, "user_annotation"),  # of numbers: nothing is computed any more
        {"ph": "i", "name": "gloo:all_reduce", "ts": 100},
    ]
    found = sums_of(events, steps=1)
    assert found == {"computing": 9.9, "reducing": 3.505, "both": 0.99 + 0.49}
    assert "42 % of it" in describe(found)


def test_on_cuda_kernels_are_looked_at_alone():
    events = [
        event("ncclDevKernel_AllReduce_Sum_f32", 500, 1500, "kernel"),
        event("sm90_xmma_dgrad", 0, 1000, "kernel"),
        event(BACKWARD, 0, 90),
    ]
    assert sums_of(events, steps=2) == {"computing": 0.5, "reducing": 0.5, "both": 0.25}
