"""What precision=auto is, on processors that this machine need not have."""

import pytest

from bert_tf.training.precision import Processor, choose_precision, this_processor

CPUINFO = """processor\t: 0
model name\t: Some Processor 7
flags\t\t: fpu avx512f {flag} avx512_vnni

processor\t: 1
model name\t: Some Processor 7
flags\t\t: fpu
"""


def choice(flags=("avx512_bf16",), jit_compile="auto", environment=None, **arguments):
    arguments = {"on_one_cpu": True, "one_shape": True, **arguments}
    return choose_precision(
        Processor("Some Processor 7", frozenset(flags)),
        jit_compile=jit_compile,
        environment=environment or {},
        **arguments,
    )


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16"])
def test_a_processor_with_bfloat16_products(tmp_path, flag):
    (tmp_path / "cpuinfo").write_text(CPUINFO.format(flag=flag))
    processor = this_processor(tmp_path / "cpuinfo")
    assert processor.name == "Some Processor 7" and flag in processor.flags
    chosen = choice(processor.flags)
    assert chosen[:2] == ("mixed_bfloat16", "pointwise")
    assert chosen.reason == f"Some Processor 7 has bfloat16 products ({flag})"


def test_what_is_asked_for_is_kept():
    assert choice(jit_compile="false")[:2] == ("mixed_bfloat16", "false")
    assert choice(jit_compile="pointwise")[:2] == ("mixed_bfloat16", "pointwise")
    assert choice(one_shape=False)[:2] == ("mixed_bfloat16", "auto")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"flags": ("avx512f", "avx512_vnni")}, "Some Processor 7 has no bfloat16 products"),
        ({"on_one_cpu": False}, "one CPU alone"),
        ({"environment": {"TF_ENABLE_ONEDNN_OPTS": "0"}}, "TF_ENABLE_ONEDNN_OPTS=0 turns off"),
        ({"jit_compile": "true"}, "XLA has no bfloat16 products on CPUs"),
    ],
)
def test_elsewhere_nothing_changes(changes, reason):
    chosen = choice(**changes)
    assert chosen[:2] == ("float32", changes.get("jit_compile", "auto"))
    assert reason in chosen.reason


def test_a_machine_that_does_not_describe_its_processor(tmp_path):
    processor = this_processor(tmp_path / "none")
    assert processor == ("this processor", frozenset())
    assert choice(processor.flags).precision == "float32"
