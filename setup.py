"""Package metadata and dependencies; tool settings are in pyproject.toml."""

from pathlib import Path

from setuptools import setup

setup(
    name="bert-tf",
    version="0.1.0",
    description="BERT, whole, on today's TensorFlow and Keras",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    if Path(__file__).with_name("README.md").exists()
    else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.13",
    packages=["bert_tf", "data_prep", "experiments"],
    install_requires=[
        "absl-py>=2.1",
        "google-crc32c>=1.5",
        "keras>=3.10,<4",
        "numpy>=1.26",
        "tensorflow>=2.19,<2.22",
    ],
)
