"""Options of the commands that draw."""

import dataclasses

from bert_tf.options import option


@dataclasses.dataclass(frozen=True)
class AttentionOptions:
    """What plot_attention.py is asked for."""

    model_dir: str = option(
        None, "Model directory, checkpoint or name.", required=True, path="model", group="model"
    )
    text: str = option(None, "A sentence; [MASK] for a piece.", required=True, group="data")
    text_b: str | None = option(None, "A second sentence.")
    output_dir: str = option(
        None, "Folder of the pictures.", required=True, path="new_folder", group="output"
    )


@dataclasses.dataclass(frozen=True)
class CurvesOptions:
    """What plot_curves.py is asked for."""

    output_dir: str = option(None, "Folder of the run.", required=True, path="local", group="data")
    png: str | None = option(
        None, "Picture to write; curves.png in the folder by default.", path="local", group="output"
    )
