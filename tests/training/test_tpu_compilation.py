"""Training steps as a TPU's compiler takes them, without a TPU.

Both backends' steps are lowered and looked through; where libtpu is installed (`pip install
libtpu`, of the version that jax[tpu] asks for), its compiler takes them, for chips that are not
there. What no compiler shows: that a TPU's runtime starts the program, and how fast it is.
"""

import json
import os
import re
import subprocess
import sys

import pytest
import tensorflow as tf

from tests.support import distributed_runs as runs
from tests.support import synthetic_records as synthetic
from tests.support.distributed_runs import REPOSITORY, Case

TOPOLOGY = "v5e:2x2"
# No TPU's metadata is asked for; and tests beside this one may have the library loaded.
OFFLINE = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
HOST_TRAFFIC = r"\b(custom-call|infeed|outfeed|send|recv|send-done|recv-done)\("
DYNAMIC_SIZE = r"[a-z]\w*\[[^\]]*<="  # a bound in place of a size, as f32[<=7,3]


@pytest.fixture
def libtpu(monkeypatch):
    """Have the TPU's compiler, or skip the test."""
    pytest.importorskip("libtpu", reason="libtpu, the compiler for TPUs, is not installed")
    pytest.importorskip("jax", reason="jax is not installed")
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)


# === TensorFlow: the step of the Trainer ===


def compiler_ir(function, *arguments):
    """Return the HLO of a function as text and as a protocol buffer."""
    lower = tf.function(function, jit_compile=True).experimental_get_compiler_ir(*arguments)
    return lower(stage="hlo"), lower(stage="hlo_serialized")


@pytest.fixture(
    scope="module",
    params=[
        Case(dropout=0.1),
        pytest.param(Case(precision="mixed_bfloat16", dropout=0.1), marks=pytest.mark.slow),
        Case(precision="mixed_bfloat16", dropout=0.1, sequences_per_row=3),
    ],
    ids=lambda case: case.name,
)
def trainer_step(request, tmp_path_factory):
    """The HLO of a step of pre-training, dropout, clipping and metrics included."""
    folder = tmp_path_factory.mktemp("trainer")
    case = request.param
    records = synthetic.write(folder / "t.tfrecord", 101, 1)
    trainer = runs.make_trainer(case, folder / "run")
    (batch,) = runs.dataset_of(case, records).take(1)
    assert ("sequence_ids" in batch[0]) == (case.sequences_per_row is not None)
    return compiler_ir(trainer.train_step.single_step, batch)


def test_the_trainers_step_has_no_host_and_no_free_size(trainer_step):
    text, _ = trainer_step
    assert " dot(" in text and "ENTRY" in text
    assert not re.findall(HOST_TRAFFIC, text) and not re.findall(DYNAMIC_SIZE, text)


def test_what_a_tpu_would_refuse_is_seen():
    """The patterns of the test above find what they are for."""
    text, _ = compiler_ir(lambda x: tf.reduce_sum(tf.boolean_mask(x, x > 0)), tf.ones([7]))
    assert re.findall(DYNAMIC_SIZE, text)
    assert re.findall(HOST_TRAFFIC, "%a.1 = f32[7]{0} custom-call(f32[7]{0} %b), target=x")


@pytest.mark.slow
def test_the_tpus_compiler_takes_the_trainers_step(libtpu, trainer_step):
    from jax._src.interpreters import mlir
    from jax._src.lib import xla_client
    from jax.experimental import topologies

    module = xla_client._xla.mlir.xla_computation_to_mlir_module(
        xla_client.XlaComputation(trainer_step[1])
    )
    # A copy of a returned value is in XLA's own dialect alone; this does as little.
    module = module.replace("mhlo.copy", "stablehlo.optimization_barrier")
    with mlir.make_ir_context():
        module = mlir.ir.Module.parse(module)
    device = topologies.get_topology_desc(TOPOLOGY, platform="tpu").devices[0]
    options = xla_client.CompileOptions()
    compiled = device.client.compile(module, xla_client.DeviceList((device,)), options)
    assert compiled.get_compiled_memory_stats().generated_code_size_in_bytes > 0


# === JAX: the step split over a mesh ===

SCRIPT = """
import json, sys
from bert_tf.config import BertConfig
from experiments.benchmarks import device_memory
from experiments.benchmarks.pretraining_steps import Shapes

options = device_memory.Options(mesh=(2, 2), topology=sys.argv[1])
config = BertConfig(vocab_size=101, hidden_size=28, num_hidden_layers=2, num_attention_heads=4,
    intermediate_size=76, max_position_embeddings=13)
traced = device_memory.trace_step(options, Shapes(config, 6, 11, 3, int(sys.argv[2])))
text = traced.lower(lowering_platforms=("tpu",)).as_text()
memory = None
if options.topology != device_memory.HOST:
    memory = device_memory.memory_of(traced.lower().compile())
print(json.dumps([text, memory]))
"""


def jax_step(topology, sequences):
    """Return StableHLO of a step for TPUs, and for a TPU's topology what memory it needs.

    Args:
        topology: of the TPU; or "host".
        sequences: of a packed row; 1 for rows of one.
    """
    devices = "--xla_force_host_platform_device_count=4"
    environment = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": devices}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, topology, str(sequences)],
        check=True,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, **environment, **OFFLINE},
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.jax
@pytest.mark.parametrize("sequences", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_the_step_on_jax_lowers_for_tpus(sequences):
    pytest.importorskip("jax", reason="jax is not installed")
    text, _ = jax_step("host", sequences)
    assert "stablehlo.dot_general" in text
    calls = set(re.findall(r"custom_call @(\w+)", text))
    assert calls <= {"Sharding", "annotate_device_placement"}  # no callbacks to the host
    assert not re.findall(r"tensor<[^>]*\?|stablehlo.(?:real_)?dynamic_(?!slice|update)", text)
    assert not re.findall(r"tensor<[^>]*\b(?:f64|i64)>", re.sub(r"dense<.*?>|array<.*?>", "", text))


@pytest.mark.jax
@pytest.mark.slow
@pytest.mark.parametrize("sequences", [1, 2])
def test_the_tpus_compiler_takes_the_step_on_jax(libtpu, sequences):
    _, memory = jax_step(TOPOLOGY, sequences)
    # The state is at least weights and two moments of what is not split.
    assert 3 * 4 * 101 * 28 < memory["state_gib"] * 2**30 < 16 * 2**30
    assert 0 < memory["step_gib"] < 1
