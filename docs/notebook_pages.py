"""Notebooks as pages of the site: Markdown for MkDocs, so that their links are checked."""

import pathlib

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter


class _NotebookPage(File):
    def is_documentation_page(self) -> bool:
        return True


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Put a page in the place of each notebook, and its pictures beside it."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        name = pathlib.PurePosixPath(file.src_uri)
        resources = {"unique_key": name.stem, "output_files_dir": f"{name.stem}_files"}
        text, made = MarkdownExporter().from_filename(file.abs_src_path, resources)
        files.remove(file)
        files.append(_NotebookPage.generated(config, file.src_uri, content=text))
        for picture, content in made["outputs"].items():
            uri = (name.parent / picture).as_posix()
            files.append(File.generated(config, uri, content=content))
