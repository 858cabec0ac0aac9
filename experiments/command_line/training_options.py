"""Options of training that pre-training and fine-tuning share."""

import dataclasses

from bert_tf.options import option, same
from bert_tf.training.options import TrainerOptions, check_profile_steps
from experiments.command_line.exit_status import InputError

# What a run's result depends on.
TRAJECTORY_NAMES = (
    "precision jit_compile optimizer layer_wise_decay freeze_layers freeze recompute_layers "
    "gradient_accumulation_steps loss_normalization ema_momentum"
).split()


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
    """How a model learns, and on which devices.

    Raises:
        InputError: the devices are named by flags that are not supported together.
    """

    precision: str = option(
        "float32",
        "What is computed in; weights stay float32. auto is mixed_bfloat16 on one CPU that has its "
        "products, else float32; mixed_float16 scales the loss.",
        choices=("float32", "mixed_bfloat16", "mixed_float16", "auto"),
        group="training",
    )
    jit_compile: str = same(TrainerOptions, "jit_compile")
    deterministic: bool = option(
        False, "Deterministic GPU kernels, slower; on CPU they are already."
    )
    optimizer: str = option("adamw", "BERT's Adam, or LAMB.", choices=("adamw", "lamb"))
    layer_wise_decay: float = option(
        1.0, "Factor from a layer's learning rate to that of the one below.", above=0, maximum=1
    )
    freeze_layers: int = option(-1, "Freeze the embeddings and so many layers; -1 for nothing.")
    freeze: tuple[str, ...] = option((), "Regular expression of weights to freeze.", repeated=True)
    recompute_layers: str = option(
        "none",
        "Layers computed again for the gradients, to save memory: none, all, every_2, or 0,1,5.",
    )
    distribution_strategy: str = option(
        "one_device",
        "Devices to train on; multi_worker_mirrored takes the cluster from TF_CONFIG.",
        choices=("one_device", "mirrored", "multi_worker_mirrored", "tpu"),
    )
    all_reduce_alg: str | None = option(
        None,
        "How gradients are summed: the first three for mirrored; ring, nccl and auto for "
        "multi_worker_mirrored.",
        choices=("nccl", "hierarchical_copy", "reduction_to_one_device", "ring", "auto"),
    )
    num_replicas: int | None = option(
        None, "GPUs of mirrored, all by default; without a GPU, logical devices made of the CPU."
    )
    gradient_accumulation_steps: int = same(TrainerOptions, "gradient_accumulation_steps")
    loss_normalization: str = same(TrainerOptions, "loss_normalization")
    ema_momentum: float = option(
        0.0,
        "Evaluate and keep averages of the weights that decay by this factor a step; 0 for none.",
        minimum=0,
        below=1,
    )
    profile_steps: tuple[int, ...] = same(TrainerOptions, "profile_steps")
    use_tpu: bool = option(False, "Not supported; see distribution_strategy.")
    num_tpu_cores: int = option(8, "Accepted for old commands; without effect.")
    tpu_name: str | None = option(None, "Of distribution_strategy tpu.")
    tpu_zone: str | None = option(None, "Of distribution_strategy tpu.")
    gcp_project: str | None = option(None, "Of distribution_strategy tpu.")
    master: str | None = option(None, "Not supported.")

    def __post_init__(self) -> None:
        check_profile_steps(self.profile_steps)
        if self.jit_compile == "pointwise" and self.precision == "mixed_float16":
            raise InputError("jit_compile: pointwise is for float32 and mixed_bfloat16")
        of_tpu = self.tpu_name or self.tpu_zone or self.gcp_project
        if self.use_tpu or self.master or (of_tpu and self.distribution_strategy != "tpu"):
            raise InputError(
                "use_tpu, tpu_name, tpu_zone, gcp_project, master: TensorFlow masters are not "
                "supported, and TPUs with --distribution_strategy=tpu in place of --use_tpu; drop "
                "these flags to train on this machine's GPU or CPU"
            )

    def check_profile_of(self, num_train_steps: int) -> None:
        """Refuse to profile steps that a run does not take.

        Raises:
            InputError: one line names the option.
        """
        if self.profile_steps and self.profile_steps[-1] > num_train_steps:
            raise InputError(
                f"profile_steps: expected steps of the run, which takes {num_train_steps:,}, got "
                f"{','.join(map(str, self.profile_steps))}"
            )
