"""Models by name, loaded, served, converted and put up; see `test_published`."""

import hashlib

import keras
import pytest
from huggingface_hub import constants

import bert_tf
from bert_tf.models.task_models import HEADS
from bert_tf.options import check
from bert_tf.tokenization.wordpiece import FullTokenizer
from bert_tf.weights.save import save_hf, save_model_directory
from bert_tf.weights.upload import upload_hf
from experiments.conversion import convert
from experiments.conversion.options import ConversionOptions
from tests.support import model_servers
from tests.support import synthetic_records as synthetic
from tests.support.model_servers import COMMIT, NOBODY, contents, running, use_hub, zipped
from tests.weights.test_checkpoint import assert_same, values
from tests.weights.test_published import ARCHIVE, GOOGLE, HF, REPOSITORY

# Of httpx, where huggingface_hub sends a large file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def encoder():
    keras.utils.set_random_seed(7)
    sizes = dict(num_hidden_layers=2, hidden_size=128, num_attention_heads=2)
    return HEADS["encoder"].make(synthetic.small_config(**sizes))


@pytest.fixture(scope="module")
def folders(encoder, tmp_path_factory):
    """Return a folder with the model in Google's files and in transformers'."""
    made = tmp_path_factory.mktemp("models")
    tokenizer = FullTokenizer(synthetic.write_vocabulary(made / "words.txt"))
    save_model_directory(made / "google", encoder, tokenizer=tokenizer)
    save_hf(made / "hf", encoder, tokenizer)
    return made


@pytest.fixture(autouse=True)
def no_other_place(tmp_path, monkeypatch):
    model_servers.keep_apart(tmp_path, monkeypatch)


@pytest.fixture
def storage(folders, monkeypatch):
    with running(model_servers.Storage) as server:
        server.files[f"/{ARCHIVE}.zip"] = zipped(contents(folders / "google"), "a/")
        monkeypatch.setenv("BERT_TF_GOOGLE_MIRROR", server.url)
        yield server


@pytest.fixture
def hub(folders, monkeypatch):
    with running(model_servers.Hub) as server:
        for name, content in contents(folders / "hf").items():
            server.files[REPOSITORY + name] = content
        use_hub(server.url, monkeypatch)
        yield server


@pytest.mark.parametrize("name", [GOOGLE, HF])
def test_a_model_is_loaded_by_its_name(storage, hub, encoder, name):
    loaded = bert_tf.load_bert(name)
    assert_same(values(loaded.encoder), values(encoder))
    assert loaded.tokenizer is not None


def test_a_model_is_converted_by_its_name(storage, hub, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_may-write")
    options = ConversionOptions(
        source=GOOGLE, target=str(tmp_path / "hf"), format="hf", upload_to="hf://me/mine"
    )
    check(options)
    convert.run(options)
    assert f"uploaded: {hub.url}/me/mine/commit/{COMMIT}" in capsys.readouterr().out
    assert hub.files["/me/mine/model.safetensors"] == contents(tmp_path / "hf")["model.safetensors"]
    with pytest.raises(ValueError, match="upload_to: needs --format=hf, got tf1"):
        ConversionOptions(source=GOOGLE, target="x", format="tf1", upload_to="hf://me/mine")
    with pytest.raises(ValueError, match="upload_to: expected hf://OWNER/NAME, got me/mine"):
        ConversionOptions(source=GOOGLE, target="x", format="hf", upload_to="me/mine")


def test_predictor_takes_a_name(hub):
    predictor = bert_tf.Predictor(HF, task="embeddings", max_seq_length=7)
    assert predictor.embed(["one two"]).shape == (1, 128)


def test_a_model_goes_up_with_a_card(hub, folders, monkeypatch, encoder):
    monkeypatch.setenv("HF_TOKEN", "hf_may-write")
    (folders / "hf" / "training_state.bin").write_bytes(b"stays here")
    address = upload_hf(
        "hf://me/mine", folders / "hf", description="Trained on fables.", license="apache-2.0"
    )
    (folders / "hf" / "training_state.bin").unlink()
    assert address == f"{hub.url}/me/mine/commit/{COMMIT}"
    card = hub.files["/me/mine/README.md"].decode()
    assert "license: apache-2.0" in card and "pipeline_tag: feature-extraction" in card
    assert "Trained on fables." in card and 'load_model("hf://me/mine")' in card
    assert f"| parameters | {encoder.count_params():,} |" in card
    there = {path.removeprefix("/me/mine/") for path in hub.files if path.startswith("/me/mine/")}
    assert there == {*contents(folders / "hf"), "README.md"} - {"training_state.bin"}
    assert_same(values(bert_tf.load_bert("hf://me/mine").encoder), values(encoder))
    hub.files["/me/mine/README.md"] = b"written by hand"
    upload_hf("hf://me/mine", folders / "hf")
    assert hub.files["/me/mine/README.md"] == b"written by hand"
    (folders / "hf" / "README.md").write_bytes(b"beside the model")
    upload_hf("hf://me/mine", folders / "hf", description="not made into a card")
    (folders / "hf" / "README.md").unlink()
    assert hub.files["/me/mine/README.md"] == b"beside the model"


@pytest.mark.parametrize(
    ("token", "owner", "message"),
    [
        ("", "me", "hf://me/mine: there is no token; log in with a token that may write"),
        ("hf_unknown", "me", "hf://me/mine: the Hub does not know this token"),
        ("hf_may-read", "me", "hf://me/mine: this token may not write there .You don't have the"),
        (
            "hf_may-write",
            "other",
            "hf://other/mine: this token may not write .* take another",
        ),
    ],
)
def test_who_may_not_put_a_model_up_is_told(hub, folders, monkeypatch, token, owner, message):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PermissionError, match=message) as error:
        upload_hf(f"hf://{owner}/mine", folders / "hf")
    assert "\n" not in str(error.value)
    assert not [path for path in hub.files if path.startswith(f"/{owner}/")]


def test_what_cannot_go_up_says_why(hub, folders, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_may-write")
    for name, message in (
        ("hf://me/mine@v1", "name: expected hf://OWNER/NAME, got hf://me/mine@v1"),
        ("hf://mine", "name: expected hf://OWNER/NAME, got hf://mine"),
        ("hf://me/m ne", "hf://me/m ne: Repo id must use alphanumeric"),
    ):
        with pytest.raises(ValueError, match=message):
            upload_hf(name, folders / "hf")
    with pytest.raises(ValueError, match="expected what bert_tf.save_hf writes"):
        upload_hf("hf://me/mine", folders / "google")
    with pytest.raises(OSError, match='does not take it .400: "license" must be one of'):
        upload_hf("hf://me/mine", folders / "hf", license="none-of-these")
    hub.refused = 503
    with pytest.raises(OSError, match="does not take it .503.*; try again later"):
        upload_hf("hf://me/mine", folders / "hf")
    use_hub(NOBODY, monkeypatch)
    with pytest.raises(OSError, match=f"{NOBODY} cannot be asked .*; connect and put it up again"):
        upload_hf("hf://me/mine", folders / "hf")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="HF_HUB_OFFLINE is set; unset it"):
        upload_hf("hf://me/mine", folders / "hf")


def test_a_model_whose_upload_was_cut_off_goes_up_when_it_is_put_up_again(
    hub, folders, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", "hf_may-write")
    content = contents(folders / "hf")["model.safetensors"]
    place = f"/large/{hashlib.sha256(content).hexdigest()}"
    hub.cuts[place] = 6 * [1000]  # the first time, and when huggingface_hub tries again
    with pytest.raises(OSError, match="cannot be asked .*; connect and put it up again") as error:
        upload_hf("hf://me/mine", folders / "hf")
    assert "\n" not in str(error.value)
    assert not [path for path in hub.files if path.startswith("/me/")]  # not half of it
    for times in (1, 0):  # once it is there, the large file is not sent again
        hub.requests.clear()
        upload_hf("hf://me/mine", folders / "hf")
        assert [path for method, path, _ in hub.requests if method == "PUT"] == times * [place]
        assert hub.files["/me/mine/model.safetensors"] == content


def test_released_models_are_those_of_keras_hub():
    from keras_hub.src.models.bert.bert_presets import backbone_presets

    theirs = {
        preset["kaggle_handle"].rpartition("/")[0]: preset["metadata"]["params"]
        for name, preset in backbone_presets.items()
        if name.startswith("bert_") and "sst2" not in name
    }
    ours = {name: p.num_parameters for p in bert_tf.presets() for name in p.names}
    assert theirs == {name: n for name, n in ours.items() if name.startswith("kaggle:")}
