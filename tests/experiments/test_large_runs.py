"""The plan of large runs: its arithmetic by hand, and the tables of docs/scale.md."""

import pytest

from experiments.benchmarks import large_runs
from experiments.benchmarks.accelerator import flops_of_sequence
from experiments.benchmarks.large_runs import Options
from tests.test_layering import REPOSITORY


def by_hand(layers, hidden, length, predictions, words=30_522):
    """The formula of docs/scale.md."""
    encoder = layers * (24 * hidden**2 + 4 * length * hidden) * length
    return 3 * (encoder + 2 * predictions * (hidden**2 + words * hidden) + 2 * hidden**2)


@pytest.mark.parametrize(("size", "sizes"), [("base", (12, 768)), ("large", (24, 1024))])
def test_operations_are_those_of_the_formula(size, sizes):
    total = 0
    for length, predictions, count in ((128, 20, 230.4e6), (512, 77, 25.6e6)):
        expected = by_hand(*sizes, length, predictions)
        assert flops_of_sequence(large_runs.shapes_of(size, length)) == pytest.approx(expected)
        total += count * expected
    assert large_runs.pretraining_flops(size) == pytest.approx(total)
    assert large_runs.pretraining_flops(size) == pytest.approx(
        {"base": 2.38e19, "large": 8.15e19}[size], rel=2e-3
    )
    # Half of an A100 and all of a chip with half its peak take equally long.
    hours = large_runs.device_hours(size, "A100", 0.5)
    assert hours == pytest.approx(total / 156e12 / 3600)
    bins = large_runs.device_hours(size, "A100", 0.5, bins=True)
    assert 0.784 * hours < bins < 0.938 * hours


def test_data_preparation_grows_with_the_text():
    one = large_runs.data_preparation(40.9e6)  # the text that was measured
    assert one["extraction, core-hours"] == "0.0021"  # 7.5 s
    assert one["records of 128 on disk, `dupe_factor` 1"] == "0.077 GB"  # 92,670 x 830
    assert one["commands, of 20 GB each"] == "1"
    ten = large_runs.data_preparation(1e13)
    assert ten["records, local, `dupe_factor` 1, core-hours"] == "917"  # 13.5 x 244,499 / 3,600
    assert ten["records, Spark, `dupe_factor` 1, core-hours"] == "1,487"  # 21.9 x 244,499 / 3,600
    assert ten["commands, of 20 GB each"] == "500"


def test_a_core_by_its_steps():
    step = 32 * by_hand(4, 256, 128, 20)  # of BERT-Mini
    assert large_runs.core_flops("float32") == pytest.approx(step / 1.707)
    hours = large_runs.pretraining_flops("base") / (step / 0.981) / 3600
    (row,) = (x for x in large_runs.tables(Options())[2] if x.startswith("| bfloat16"))
    assert row.split(" | ")[2] == f"{hours:,.0f}" == "56,922"


def test_reading_keeps_up_as_the_page_says():
    asked = large_runs.records_a_second("base", 128, "H100", 0.5)
    assert asked == pytest.approx(989e12 / 2 / (by_hand(12, 768, 128, 20) * 0.938))
    low, high = large_runs.READ_A_SECOND
    assert asked * 6 < low and low < 8 * asked < high
    assert 8 * asked * large_runs.RECORD_BYTES == pytest.approx(50e6, rel=0.01)


def test_the_page_has_the_tables_of_the_script():
    page = (REPOSITORY / "docs" / "scale.md").read_text(encoding="utf-8")
    for lines in large_runs.tables(Options()):
        assert "\n".join(lines) in page, lines[0]


def test_other_sizes_of_the_plan(capsys):
    large_runs.compare(Options(terabytes=(0.5,), model_sizes=("tiny",), utilisations=(0.4,)))
    printed = capsys.readouterr().out
    assert "80.0 billion words" in printed and "| TINY, at 40% | TINY, bins, at 40% |" in printed
