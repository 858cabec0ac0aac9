"""Models by name, from stand-ins for the places that have them: what is asked, kept and refused.

The files are not weights; `test_published_models` loads some that are.
"""

import contextlib
import hashlib
import io
import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import huggingface_hub
import pytest
import requests
from huggingface_hub import constants

import bert_tf
from bert_tf.config import BertConfig
from bert_tf.weights import google_archive, google_digests, hugging_face, published
from bert_tf.weights.locate import locate
from bert_tf.weights.published import fetched
from bert_tf.weights.tensor_files import CorruptCheckpointError
from tests.support import model_servers
from tests.support.model_servers import (
    COMMIT,
    NOBODY,
    OLDER_COMMIT,
    contents,
    running,
    use_hub,
    zipped,
)

GOOGLE, ARCHIVE = "google://uncased_L-2_H-128_A-2", "2020_02_20/uncased_L-2_H-128_A-2"
HF, REPOSITORY = "hf://someone/bert", "/someone/bert/"
KAGGLE = "kaggle://keras/bert/keras/bert_tiny_en_uncased"
MODEL = "/keras/bert/bert_tiny_en_uncased/"

BYTES = hashlib.shake_128(b"weights").digest(20_000)  # which compression leaves as long
TENSORS = b"\x02" + bytes(7) + b"{}" + BYTES
GOOGLE_FILES = {
    "bert_config.json": BertConfig.from_size("tiny", vocab_size=7).to_json_string().encode(),
    "vocab.txt": b"[PAD]\n",
    "bert_model.ckpt.index": b"index",
    "bert_model.ckpt.data-00000-of-00001": BYTES,
}
HF_FILES = {"config.json": b"{}", "vocab.txt": b"[PAD]\n", "model.safetensors": TENSORS}


@pytest.fixture(autouse=True)
def no_other_place(tmp_path, monkeypatch):
    model_servers.keep_apart(tmp_path, monkeypatch)


# === Google ===


@pytest.fixture
def storage(tmp_path, monkeypatch):
    with running(model_servers.Storage) as server:
        server.files[f"/{ARCHIVE}.zip"] = zipped(GOOGLE_FILES, "a/")
        monkeypatch.setenv("BERT_TF_GOOGLE_MIRROR", server.url)
        yield server


@pytest.fixture
def plain_storage(storage, monkeypatch):
    with running(model_servers.PlainStorage) as server:
        server.files = storage.files
        monkeypatch.setenv("BERT_TF_GOOGLE_MIRROR", server.url)
        yield server


def test_an_archive_of_google_is_found_by_its_name(storage, tmp_path):
    place = tmp_path / "cache" / "google" / ARCHIVE
    found = locate(GOOGLE)
    assert (found.format, found.path) == ("tf", str(place / "bert_model.ckpt"))
    assert found.config_file == str(place / "bert_config.json")
    assert contents(place) == GOOGLE_FILES
    # Nothing is left of the archive, and nobody is asked again.
    assert {path.name for path in place.parent.iterdir()} == {place.name, f"{place.name}.lock"}
    storage.refused = 500
    assert locate(f"google://{ARCHIVE}") == found


@pytest.mark.parametrize("prefix", ["", "another/"])
def test_files_lie_at_the_top_of_an_archive_or_in_a_folder(storage, tmp_path, prefix):
    storage.files[f"/{ARCHIVE}.zip"] = zipped(GOOGLE_FILES, prefix)
    assert contents(fetched(GOOGLE)) == GOOGLE_FILES


def test_a_download_that_is_cut_off_goes_on_where_it_ended(storage, monkeypatch):
    monkeypatch.setattr(google_archive, "_PIECE_BYTES", 500)
    storage.cuts[f"/{ARCHIVE}.zip"] = [1000, 0, 0, 0, 0, 5000]
    with pytest.raises(OSError, match="what came is kept") as error:
        fetched(GOOGLE)
    assert "\n" not in str(error.value)
    assert storage.ranges_asked() == 4 * ["bytes=1000-"]
    assert contents(fetched(GOOGLE)) == GOOGLE_FILES
    assert storage.ranges_asked() == 5 * ["bytes=1000-"] + ["bytes=6000-"]


def test_a_server_that_knows_no_ranges_sends_all_again(plain_storage, monkeypatch):
    monkeypatch.setattr(google_archive, "_PIECE_BYTES", 500)
    unpack, archives = google_archive._unpack, []

    def seen(name, path, folder):
        archives.append(path.read_bytes())
        unpack(name, path, folder)

    monkeypatch.setattr(google_archive, "_unpack", seen)
    plain_storage.cuts[f"/{ARCHIVE}.zip"] = [1000]
    assert contents(fetched(GOOGLE)) == GOOGLE_FILES
    assert len(plain_storage.requests) == 2
    # The first 1,000 bytes are not there twice, which a reader of archives would overlook.
    assert archives == [plain_storage.files[f"/{ARCHIVE}.zip"]]


def test_what_was_whole_when_the_process_ended_is_not_sent_again(storage, tmp_path):
    part = tmp_path / "cache" / "google" / f"{ARCHIVE}.zip.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(storage.files[f"/{ARCHIVE}.zip"])
    assert contents(fetched(GOOGLE)) == GOOGLE_FILES
    assert len(storage.requests) == 1
    # What is longer than the archive is of another.
    shutil.rmtree(part.parent)
    part.parent.mkdir()
    part.write_bytes(storage.files[f"/{ARCHIVE}.zip"] + b"more")
    assert contents(fetched(GOOGLE)) == GOOGLE_FILES


@pytest.mark.parametrize(
    ("server", "message"), [("storage", "MD5 differs"), ("plain_storage", "not the archive that")]
)
def test_a_damaged_archive_is_refused_and_removed(server, message, request, tmp_path):
    server = request.getfixturevalue(server)
    content = server.files[f"/{ARCHIVE}.zip"]
    middle = len(content) // 2
    wrong = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    if message == "MD5 differs":
        server.damaged.add(f"/{ARCHIVE}.zip")
    else:
        server.files[f"/{ARCHIVE}.zip"] = wrong
    with pytest.raises(CorruptCheckpointError, match=message):
        fetched(GOOGLE)
    assert (
        not list((tmp_path / "cache").rglob("*.part"))
        and not (tmp_path / "cache" / "google" / ARCHIVE).exists()
    )
    server.damaged.clear()
    server.files[f"/{ARCHIVE}.zip"] = content
    assert contents(fetched(GOOGLE)) == GOOGLE_FILES


def test_files_are_compared_with_the_digests_that_are_known(storage, monkeypatch):
    files = {**GOOGLE_FILES, "bert_model.ckpt.meta": b"graph"}
    storage.files[f"/{ARCHIVE}.zip"] = zipped(files)
    right = tuple(hashlib.sha256(files[f]).hexdigest() for f in google_digests.FILES)
    wrong = (*right[:3], "0" * 64, right[4])
    monkeypatch.setitem(google_archive.DIGESTS, ARCHIVE, wrong)
    with pytest.raises(CorruptCheckpointError, match=f"data-00000.* is {right[3]}, expected 000"):
        fetched(GOOGLE)
    monkeypatch.setitem(google_archive.DIGESTS, ARCHIVE, right)
    assert contents(fetched(GOOGLE)) == files


def test_an_archive_of_another_model_is_refused(storage):
    other = "2020_02_20/uncased_L-4_H-128_A-2"
    storage.files[f"/{other}.zip"] = storage.files[f"/{ARCHIVE}.zip"]
    with pytest.raises(CorruptCheckpointError, match=r"\(2, 128, 2\) layers, width and heads"):
        fetched(f"google://{other}")


@pytest.mark.parametrize("outside", ["../", "/", "a/../../", "a/b/"])
def test_nothing_is_written_outside_of_the_folder(storage, tmp_path, outside):
    storage.files[f"/{ARCHIVE}.zip"] = zipped(GOOGLE_FILES, outside)
    before = contents(tmp_path)
    with pytest.raises(CorruptCheckpointError, match="it lacks bert_config.json, bert_model.ckpt"):
        fetched(GOOGLE)
    assert set(contents(tmp_path)) - set(before) == {f"cache/google/{ARCHIVE}.lock"}


def test_an_archive_is_refused_that_google_has_not_made(storage):
    twice = io.BytesIO(zipped(GOOGLE_FILES))
    with zipfile.ZipFile(twice, "a") as archive:
        archive.writestr("a/vocab.txt", b"other")
    bzip2 = io.BytesIO()
    with zipfile.ZipFile(bzip2, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("vocab.txt", b"other")
    for content, message in (
        (twice.getvalue(), "it has vocab.txt twice"),
        (bzip2.getvalue(), "vocab.txt is compressed in another way"),
        (b"<html>Log in</html>", "File is not a zip file"),
    ):
        storage.files[f"/{ARCHIVE}.zip"] = content
        with pytest.raises(CorruptCheckpointError, match=message):
            fetched(GOOGLE)


def test_an_archive_that_would_fill_the_disk_is_refused(storage, tmp_path):
    zeros = dict.fromkeys(google_digests.FILES, bytes(14 << 20))
    storage.files[f"/{ARCHIVE}.zip"] = zipped(zeros)
    with pytest.raises(CorruptCheckpointError, match="declares 73,400,320 bytes"):
        fetched(GOOGLE)


def test_without_a_network_one_line_says_what_to_do(tmp_path):
    with pytest.raises(OSError, match="connect and try again") as error:
        fetched(GOOGLE)
    text = str(error.value)
    assert text.startswith(f"{GOOGLE}: not in {tmp_path / 'cache' / 'google' / ARCHIVE}")
    assert "BERT_TF_GOOGLE_MIRROR" in text and "\n" not in text
    with pytest.raises(ValueError, match="is it one of google://cased_L-12_H-768_A-12") as error:
        fetched("google://cased_L-12_H-768")


def test_a_server_that_is_busy_is_asked_again(storage):
    storage.refused = 503
    with pytest.raises(OSError, match="BERT_TF_GOOGLE_MIRROR"):
        fetched(GOOGLE)
    assert len(storage.requests) == 5


def test_a_connection_that_ends_is_tried_again_while_something_came(storage, monkeypatch):
    receive, kept = google_archive._receive, []

    def cut(name, url, part):
        kept.append(google_archive._size(part))
        if len(kept) == 1:
            part.write_bytes(storage.files[f"/{ARCHIVE}.zip"][:1000])
            raise requests.ConnectionError("cut")
        return receive(name, url, part)

    monkeypatch.setattr(google_archive, "_receive", cut)
    assert contents(fetched(GOOGLE)) == GOOGLE_FILES
    assert kept == [0, 1000] and storage.ranges_asked() == ["bytes=1000-"]


def test_a_part_of_what_was_asked_for_is_not_the_whole(tmp_path, monkeypatch):
    class Answer(contextlib.nullcontext):
        def __init__(self, data, places):
            super().__init__(self)
            self.status_code, self.headers = 206, {"Content-Range": f"bytes {places}/9"}
            self.data = data

        def raise_for_status(self):
            pass

        def iter_content(self, _):
            yield self.data

    answers = iter([Answer(b"01234", "0-4"), Answer(b"5678", "5-8")])
    monkeypatch.setattr(google_archive.requests, "get", lambda url, **_: next(answers))
    part = tmp_path / "part"
    assert not google_archive._receive("a", "b", part) and part.read_bytes() == b"01234"
    assert google_archive._receive("a", "b", part) and part.read_bytes() == b"012345678"


def test_what_another_process_fetches_meanwhile_is_taken(storage, monkeypatch):
    class Lock(contextlib.nullcontext):
        def __init__(self, path):
            super().__init__()
            folder = pathlib.Path(path.removesuffix(".lock"))
            folder.mkdir()
            for name, data in GOOGLE_FILES.items():
                (folder / name).write_bytes(data)

    monkeypatch.setattr(google_archive.filelock, "FileLock", Lock)
    assert contents(fetched(GOOGLE)) == GOOGLE_FILES and not storage.requests


def test_an_answer_that_is_an_error_is_told(storage):
    storage.refused = 403
    with pytest.raises(OSError, match=r"zip cannot be had: 403"):
        fetched(GOOGLE)


@pytest.mark.parametrize(
    ("archive", "vocabulary"),
    [
        ("2018_10_18/uncased_L-12_H-768_A-12", "uncased"),
        ("2018_10_18/cased_L-24_H-1024_A-16", "cased"),
        ("2018_11_23/multi_cased_L-12_H-768_A-12", "multilingual-cased"),
        ("2018_11_03/chinese_L-12_H-768_A-12", "chinese"),
    ],
)
def test_recorded_digests_are_those_of_the_vocabularies(shared_data, archive, vocabulary):
    content = (shared_data / "vocab" / f"bert-base-{vocabulary}-vocab.txt").read_bytes()
    recorded = dict(zip(google_digests.FILES, google_digests.DIGESTS[archive], strict=True))
    assert recorded["vocab.txt"] == hashlib.sha256(content).hexdigest()


# === The Hugging Face Hub ===


@pytest.fixture
def hub(monkeypatch):
    with running(model_servers.Hub) as server:
        for name, content in HF_FILES.items():
            server.files[REPOSITORY + name] = content
        use_hub(server.url, monkeypatch)
        yield server


def test_of_a_repository_the_best_weights_come_and_what_belongs_to_them(hub):
    others = ("tf_model.h5", "pytorch_model.bin", "README.md", "onnx/model.onnx", "onnx/a.json")
    for other in others:
        hub.files[REPOSITORY + other] = b"other"
    folder = pathlib.Path(fetched(HF)).parent
    assert contents(folder) == HF_FILES
    # It is where transformers looks, too.
    found = huggingface_hub.hf_hub_download("someone/bert", "config.json", local_files_only=True)
    assert pathlib.Path(found).parent == folder and folder.name == COMMIT
    del hub.files[REPOSITORY + "model.safetensors"]
    assert pathlib.Path(fetched(HF)).name == "pytorch_model.bin"
    for name in contents(pathlib.Path(fetched(HF)).parent):
        assert not name.startswith(("onnx", "tf_", "README"))


@pytest.mark.parametrize("name", [f"{HF}@{COMMIT}", f"{HF}@main", "hf://someone/bert/"])
def test_a_revision_may_be_given(hub, name):
    assert pathlib.Path(fetched(name)).parent.name == COMMIT
    assert pathlib.Path(fetched(f"{HF}@older")).parent.name == OLDER_COMMIT
    with pytest.raises(FileNotFoundError, match=f"{hub.url}/someone/bert has no revision v9"):
        fetched(f"{HF}@v9")


def test_a_model_may_lie_in_a_folder(hub):
    for name, content in GOOGLE_FILES.items():
        hub.files[f"{REPOSITORY}sub/{name}"] = content
    found = locate(f"{HF}/sub")
    assert (found.format, pathlib.Path(found.path).parent.name) == ("tf", "sub")
    with pytest.raises(ValueError, match=r"expected one of model.safetensors, .* got nothing"):
        fetched(f"{HF}/none")
    for other in ("nested/deeper/model.keras", "two/a.keras", "two/b.keras"):
        hub.files[REPOSITORY + other] = b"other"
    for name in ("nested", "two"):  # which is meant does not show
        with pytest.raises(ValueError, match="expected one of model.safetensors"):
            fetched(f"{HF}/{name}")
    assert fetched(f"{HF}/nested/deeper").endswith("model.keras")


def test_weights_in_shards_come_whole(hub):
    hub.files[REPOSITORY + "model.safetensors.index.json"] = b"{}"
    for name in ("model-1-of-2.safetensors", "model-2-of-2.safetensors"):
        hub.files[REPOSITORY + name] = name.encode()
    del hub.files[REPOSITORY + "model.safetensors"]
    path = pathlib.Path(fetched(HF))
    assert path.name == "model.safetensors.index.json"
    assert (path.parent / "model-2-of-2.safetensors").exists()


def test_a_download_from_the_hub_goes_on_where_it_ended(hub, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)
    hub.cuts[REPOSITORY + "model.safetensors"] = [1000, 0]
    path = pathlib.Path(fetched(HF))
    assert path.read_bytes() == TENSORS
    assert hub.ranges_asked() == 2 * ["bytes=1000-"]


def test_a_download_from_the_hub_that_ends_keeps_the_files_that_came(hub):
    hub.cuts[REPOSITORY + "model.safetensors"] = [1000] + 6 * [0]
    with pytest.raises(OSError, match="files that came are kept") as error:
        fetched(HF)
    assert "\n" not in str(error.value)
    hub.requests.clear()
    assert pathlib.Path(fetched(HF)).read_bytes() == TENSORS
    asked = {path for method, path, _ in hub.requests if method == "GET" and "/resolve/" in path}
    assert {path.rpartition("/")[2] for path in asked} == {"model.safetensors"}


@pytest.mark.parametrize("name", ["model.safetensors", "vocab.txt"])
def test_a_file_of_the_hub_that_came_damaged_is_refused_and_removed(hub, name):
    hub.damaged.add(REPOSITORY + name)
    with pytest.raises(CorruptCheckpointError, match=f"{name} came damaged"):
        fetched(HF)
    hub.damaged.clear()
    folder = pathlib.Path(fetched(HF)).parent
    assert contents(folder) == HF_FILES


def test_files_of_no_digest_are_left_as_they_are(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("x")
    hugging_face._check_digests(HF, [str(path)])
    assert path.read_text() == "x"


def test_files_that_came_damaged_beside_others_are_not_kept(hub):
    names = {REPOSITORY + name for name in ("model.safetensors", "vocab.txt")}
    hub.damaged |= names
    with pytest.raises(CorruptCheckpointError, match="safetensors came .* vocab.txt came"):
        fetched(HF)
    hub.damaged.clear()
    assert contents(pathlib.Path(fetched(HF)).parent) == HF_FILES


def test_a_file_that_came_damaged_before_the_download_ended_is_not_kept(hub):
    hub.damaged.add(REPOSITORY + "vocab.txt")
    hub.cuts[REPOSITORY + "model.safetensors"] = [1000] + 6 * [0]
    with pytest.raises(OSError):
        fetched(HF)
    hub.damaged.clear()
    assert contents(pathlib.Path(fetched(HF)).parent) == HF_FILES


def test_a_model_of_which_files_are_missing_is_not_whole_in_the_cache(hub, monkeypatch):
    hub.cuts[REPOSITORY + "vocab.txt"] = [1] + 40 * [0]
    with pytest.raises(OSError, match="files that came are kept"):
        fetched(HF)
    use_hub(NOBODY, monkeypatch)
    with pytest.raises(OSError, match="not whole in the cache"):
        fetched(HF)


def test_a_gated_model_says_where_to_agree(hub, monkeypatch):
    for name, content in HF_FILES.items():
        hub.files[f"/{hub.RequestHandlerClass.GATED}/{name}"] = content
    name = f"hf://{hub.RequestHandlerClass.GATED}"
    with pytest.raises(PermissionError, match="a gated model; accept its conditions on http"):
        fetched(name)
    monkeypatch.setenv("HF_TOKEN", "hf_of-someone-who-agreed")
    assert contents(pathlib.Path(fetched(name)).parent) == HF_FILES


def test_a_name_that_the_hub_does_not_know(hub):
    with pytest.raises(FileNotFoundError, match=f"no such model, or a private one; see {hub.url}"):
        fetched("hf://someone/else")
    with pytest.raises(ValueError, match="expected hf://OWNER/NAME"):
        fetched("hf://@main")
    with pytest.raises(FileNotFoundError, match="hf://-/-: "):
        fetched("hf://-/-")


def test_without_a_network_the_cache_is_enough(hub, monkeypatch, caplog):
    path = fetched(HF)
    hub.refused = 503
    with caplog.at_level(logging.WARNING):
        assert fetched(HF) == path
    assert "the copy in the cache is taken" in caplog.text
    use_hub(NOBODY, monkeypatch)
    assert fetched(HF) == path
    caplog.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetched(HF) == path and not caplog.text
    with pytest.raises(OSError, match="unset HF_HUB_OFFLINE") as error:
        fetched("hf://someone/else")
    assert "\n" not in str(error.value)
    os.unlink(path)
    with pytest.raises(OSError, match="not whole in the cache"):
        fetched(HF)


def test_without_network_and_cache_one_line_says_what_to_do():
    with pytest.raises(OSError, match="connect and try again") as error:
        fetched(HF)
    assert "HF_ENDPOINT" in str(error.value) and "\n" not in str(error.value)


def test_the_libraries_own_settings_hold(hub, tmp_path):
    """HF_ENDPOINT and HF_HOME, and then HF_HUB_OFFLINE, in processes of commands."""
    code = (
        "import experiments, data_prep; from bert_tf.weights.locate import locate; "
        f"print(locate({HF!r}).path)"
    )
    for settings in ({"HF_ENDPOINT": hub.url}, {"HF_HUB_OFFLINE": "1"}):
        others = {name: x for name, x in os.environ.items() if not name.startswith("HF_")}
        environment = {**others, "HF_HOME": str(tmp_path / "home"), **settings}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        expected = f"models--someone--bert/snapshots/{COMMIT}/model.safetensors"
        assert done.stdout.strip() == str(tmp_path / "home" / "hub" / expected)
        hub.refused = 500


# === Kaggle ===


@pytest.fixture
def kaggle(monkeypatch):
    with running(model_servers.Kaggle) as server:
        config = {"registered_name": "keras_hub>BertBackbone"}
        server.files[f"{MODEL}config.json"] = json.dumps(config).encode()
        server.files[f"{MODEL}model.weights.h5"] = b"\x89HDF\r\n\x1a\n" + BYTES * 64
        server.files[f"{MODEL}assets/tokenizer/vocabulary.txt"] = b"[PAD]\n"
        monkeypatch.setenv("http_proxy", server.url)
        yield server


def test_a_model_of_kaggle_is_found_by_its_name(kaggle, tmp_path):
    found = locate(KAGGLE)
    place = tmp_path / "kaggle" / "models" / "keras/bert/keras/bert_tiny_en_uncased/3"
    assert (found.format, found.path) == ("keras_hub", str(place))
    assert {MODEL + name: content for name, content in contents(place).items()} == kaggle.files
    # A version that is here is not asked for, and without a network the newest is taken.
    for kaggle.refused in (503, 403):
        assert fetched(f"{KAGGLE}/3") == fetched(KAGGLE) == str(place)


def test_what_keras_hub_has_fetched_is_enough(monkeypatch, kaggle, tmp_path):
    import kagglehub

    handle = KAGGLE.removeprefix("kaggle://")
    for name in ("config.json", "model.weights.h5"):  # one by one, as from_preset does
        kagglehub.model_download(handle, name)
    monkeypatch.setenv("http_proxy", NOBODY)
    assert locate(KAGGLE).format == "keras_hub"


def test_a_download_from_kaggle_goes_on_where_it_ended(kaggle):
    weights = f"{MODEL}model.weights.h5"
    kaggle.cuts[weights] = [(1 << 20) + 1000]  # kagglehub keeps whole MiB
    with pytest.raises(OSError, match="what came is kept") as error:
        fetched(KAGGLE)
    assert "\n" not in str(error.value)
    assert pathlib.Path(fetched(KAGGLE), "model.weights.h5").read_bytes() == kaggle.files[weights]
    assert kaggle.ranges_asked() == ["bytes=1048576-"]


def test_a_file_of_kaggle_that_came_damaged_is_refused(kaggle):
    kaggle.damaged.add(f"{MODEL}model.weights.h5")
    with pytest.raises(CorruptCheckpointError, match="came damaged"):
        fetched(KAGGLE)
    kaggle.damaged.clear()
    assert locate(KAGGLE).format == "keras_hub"


def test_what_kaggle_refuses_says_what_to_do(kaggle):
    with pytest.raises(FileNotFoundError, match="no such model; see https://www.kaggle.com/models"):
        fetched("kaggle://keras/bert/keras/none")
    kaggle.refused = 403
    with pytest.raises(PermissionError, match="accept its conditions on .* KAGGLE_API_TOKEN"):
        fetched(KAGGLE)
    with pytest.raises(ValueError, match=r"expected kaggle://OWNER/MODEL/FRAMEWORK/VARIATION"):
        fetched("kaggle://keras/bert")


def test_without_network_and_cache_of_kaggle_one_line_says_what_to_do(monkeypatch):
    monkeypatch.setenv("http_proxy", NOBODY)
    with pytest.raises(OSError, match="connect and try again") as error:
        fetched(KAGGLE)
    assert "not whole in the cache" in str(error.value) and "\n" not in str(error.value)


# === All ===


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setattr(
        published.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError("no"))
    )
    with pytest.raises(OSError, match="hf://someone/bert: pip install huggingface_hub"):
        fetched(HF)


def test_other_paths_are_left_alone():
    for path in ("runs/mini", "gs://bucket/model", "hf://datasets/a/b", "hf:/a", "google"):
        assert fetched(path) == path


def test_shipped_models_are_listed():
    tiny = next(preset for preset in bert_tf.presets() if preset.names == ("tiny-wikipedia",))
    # Of its card: with heads (dense 128 x 128, LayerNorm, a bias a piece; two outputs) 1,478,978.
    heads = 128 * 128 + 128 + 2 * 128 + 8000 + 2 * 128 + 2
    assert tiny.num_parameters + heads == 1_478_978 and not tiny.cased


def test_released_models():
    presets = [preset for preset in bert_tf.presets() if preset.archive]
    assert len(presets) == 9 + 24
    assert len({name for preset in presets for name in preset.names}) == sum(
        len(preset.names) for preset in presets
    )
    tiny = next(preset for preset in presets if preset.title == "BERT-Tiny")
    assert tiny.names[0] == GOOGLE and tiny.scores["GLUE score"] == 64.2
    assert (tiny.num_layers, tiny.hidden_size, tiny.num_attention_heads) == (2, 128, 2)
    assert tiny.num_parameters == 4_385_920 and not tiny.cased
    assert [preset.title for preset in presets if preset.cased] == [
        "BERT-Base, cased",
        "BERT-Large, cased",
        "BERT-Large, cased, whole words masked",
        "BERT-Base, multilingual, cased",
    ]
    text = repr(bert_tf.presets())
    assert "BERT-Base, Chinese" in text and "XNLI zh 77.2" in text
    assert set(google_digests.DIGESTS) <= {preset.archive for preset in presets}
