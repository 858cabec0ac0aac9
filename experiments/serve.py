r"""A development server with TF Serving's APIs, for SavedModels of this package or any other.

    python experiments/serve.py --model_base_path=exported/mini

    python experiments/serve.py --model_base_path=exported/squad --model_base_path=exported/ner \
        --rest_api_port=8501 --port=8500 --max_batch_size=32 --batch_timeout_micros=2000

answers TF Serving's REST API on port 8501 and its gRPC API on port 8500, and has a page to try the
models on at http://127.0.0.1:8501/. Each --model_base_path is a folder of versions
(exported/mini/1/saved_model.pb); its last part is the model's name, unless --model_name, given as
often, says another. A newer version that appears there takes over once it is loaded.

    python experiments/serve.py --model_dir=tiny-wikipedia

exports a model directory or checkpoint first, here the small model that comes with the package. Of
one that classifies, answers questions or finds entities, the page then also tells why ("Why?").

    curl -d '{"instances": ["Return the [MASK] of the list."]}' \
      http://127.0.0.1:8501/v1/models/mini:predict

It is for one's own machine: no encryption, no users. In production run TF Serving itself, which the
same clients can talk to. It needs the extra `serving`.
"""

from experiments.command_line.command import run_command
from experiments.model_server.options import ServeOptions

if __name__ == "__main__":
    run_command(ServeOptions, "experiments.model_server.start", "warning")
