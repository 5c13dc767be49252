"""Data sets, their cache, and what is said when they cannot be had."""

import importlib.util
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import warnings

import jax
import numpy as np
import pytest

from sp_jax import data
from sp_jax.data import arrival, cache, text, tfds_sets

COUNT = 37
FIRST_LABELS = [4, 0, 6, 4, 8, 2, 3, 2, 1, 7, 2, 2]
TENSORFLOW = importlib.util.find_spec("tensorflow") is not None


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A TFDS folder with a small data set named `tiny`, prepared without TensorFlow."""
    return prepare(tmp_path_factory.mktemp("tfds"), "array_record")


def prepare(folder, file_format):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorflow_datasets as tfds
        from PIL import Image

        class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            VERSION = tfds.core.Version("3.0.1")
            pkg_dir_path = pathlib.Path(__file__).parent

            def _info(self):
                features = {
                    "image": tfds.features.Image(shape=(6, 5, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=4),
                }
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples()}

            def _generate_examples(self):
                for i in range(COUNT):
                    file = io.BytesIO()
                    Image.fromarray(pixels(i)[:, :, 0]).save(file, "PNG")
                    file.seek(0)
                    yield i, {"image": file, "label": i % 4}

        Tiny(data_dir=folder, file_format=file_format).download_and_prepare()
    return folder


def pixels(i):
    return np.random.default_rng(i).integers(0, 256, (6, 5, 1), dtype=np.uint8)


@pytest.fixture
def copied(prepared, tmp_path):
    folder = tmp_path / "tfds"
    shutil.copytree(prepared, folder)
    return folder


def version_folder(folder):
    return folder / "tiny" / "3.0.1"


def load(folder, tmp_path, name="tiny"):
    return data.load(name, data_dir=str(folder), cache_dir=str(tmp_path / "cache"))


def check(dataset):
    assert dataset.inputs.shape == (COUNT, 6, 5, 1)
    assert dataset.inputs.dtype == np.uint8
    assert dataset.labels.dtype == np.int32
    assert dataset.num_classes == 4
    found = {x.tobytes(): int(y) for x, y in zip(dataset.inputs, dataset.labels, strict=True)}
    assert found == {pixels(i).tobytes(): i % 4 for i in range(COUNT)}


def test_mixture_is_what_it_says():
    mixture = data.load("mixture")
    assert mixture.inputs.shape == (6_000, 8, 8, 1)
    assert mixture.inputs.dtype == np.float32
    assert np.bincount(mixture.labels).shape == (10,)
    assert np.bincount(mixture.labels).min() > 500
    assert abs(mixture.inputs.mean()) < 0.02
    assert abs(mixture.inputs.var() - 1) < 0.05
    assert mixture.labels[:12].tolist() == FIRST_LABELS  # every result depends on them
    with jax.enable_x64(True):
        again = data.load("mixture")
    np.testing.assert_array_equal(mixture.inputs, again.inputs)
    np.testing.assert_array_equal(mixture.labels, again.labels)
    assert again.inputs.dtype == np.float32


def test_arrivals():
    assert arrival.online(4_000, 250) == tuple(range(250, 4_001, 250))
    assert arrival.online(10, 4) == (4, 8, 10)
    assert arrival.online(10, 10) == (10,)
    assert arrival.two_phase(33_333) == (16_666, 33_333)
    for wrong in (0, 11, -3):
        with pytest.raises(ValueError, match="between 1 and the 10 training samples"):
            arrival.online(10, wrong)


def test_images_are_read_without_tensorflow_and_decoded_once(prepared, tmp_path, monkeypatch):
    check(load(prepared, tmp_path))
    monkeypatch.setattr(tfds_sets, "_decode", lambda *_: pytest.fail("decoded again"))
    again = load(prepared, tmp_path)
    check(again)
    assert isinstance(again.inputs, np.memmap)
    assert TENSORFLOW or "tensorflow" not in sys.modules


@pytest.mark.parametrize("damage", ["flip", "header", "truncate", "empty", "no checksums", "half written"])
def test_a_damaged_cache_is_rebuilt(prepared, tmp_path, damage):
    load(prepared, tmp_path)
    (folder,) = (tmp_path / "cache").iterdir()
    file = folder / "inputs.npy"
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[-5] ^= 255
        file.write_bytes(content)
    elif damage == "header":
        content[20] ^= 8
        file.write_bytes(content)
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "truncate":
        file.write_bytes(content[:-100])
    elif damage == "no checksums":
        (folder / "checksums.json").write_text("{")
    else:
        (folder / "labels.npy").unlink()
    check(load(prepared, tmp_path))
    check(load(prepared, tmp_path))
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]


def test_other_records_are_decoded_again(copied, tmp_path):
    load(copied, tmp_path)
    (record,) = version_folder(copied).glob("*.array_record*")
    content = record.read_bytes()
    record.unlink()
    record.write_bytes(content)
    check(load(copied, tmp_path))
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_cache_that_cannot_be_written_costs_only_time(prepared, tmp_path):
    (tmp_path / "cache").write_text("a file where a folder should be")
    check(load(prepared, tmp_path))


def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    arrays = cache.arrays(str(tmp_path / "cache"), "key", lambda: (np.zeros(3), np.zeros(3)))
    assert arrays[0].shape == (3,)
    assert list((tmp_path / "cache").iterdir()) == []


def damage_record(folder, change):
    (record,) = version_folder(folder).glob("*.array_record*")
    record.write_bytes(change(record.read_bytes()))
    return record


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: content[:200] + bytes(255 - x for x in content[200:400]) + content[400:],
    ],
    ids=["truncated", "empty", "flipped"],
)
def test_damaged_records_name_the_file(copied, tmp_path, change):
    record = damage_record(copied, change)
    with pytest.raises(data.DataError, match=f"damaged records of 'tiny' in {record}") as error:
        load(copied, tmp_path)
    assert "\n" not in str(error.value)


def test_a_missing_record_file_is_named(copied, tmp_path):
    (record,) = version_folder(copied).glob("*.array_record*")
    record.unlink()
    with pytest.raises(data.DataError, match=f"damaged records of 'tiny' in {record}"):
        load(copied, tmp_path)


def test_damaged_metadata_is_one_line(copied, tmp_path):
    (version_folder(copied) / "dataset_info.json").write_text('{"half":')
    with pytest.raises(data.DataError, match=r"data set 'tiny' in .* cannot be read") as error:
        load(copied, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not TENSORFLOW, reason="TensorFlow is not installed")
@pytest.mark.filterwarnings("ignore")
def test_records_of_tensorflow_are_read_through_tensorflow(tmp_path):
    check(load(prepare(tmp_path, "tfrecord"), tmp_path))


@pytest.mark.skipif(TENSORFLOW, reason="TensorFlow is installed")
def test_records_of_tensorflow_without_tensorflow(copied, tmp_path):
    path = version_folder(copied) / "dataset_info.json"
    info = json.loads(path.read_text())
    info["fileFormat"] = "tfrecord"
    path.write_text(json.dumps(info))
    for record in version_folder(copied).glob("*.array_record*"):
        record.rename(str(record).replace("array_record", "tfrecord"))
    with pytest.raises(
        data.DataError, match="prepared as tfrecord, which only TensorFlow reads: pip install tensorflow"
    ):
        load(copied, tmp_path)


@pytest.mark.skipif(TENSORFLOW, reason="TensorFlow is installed")
def test_a_set_that_is_not_prepared_says_where_it_looked_and_what_to_install(tmp_path):
    with pytest.raises(data.DataError, match=rf"'mnist' is not prepared in {tmp_path}.*pip install tensorflow"):
        load(tmp_path, tmp_path, "mnist")


def test_no_network_is_said_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_sets.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(tfds_sets, "_network", lambda: False)
    with pytest.raises(data.DataError, match="there is no network to download it"):
        load(tmp_path, tmp_path, "mnist")


def test_the_download_is_real_and_its_failure_is_one_line(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    asked = []

    def fail(self, *args, **kwargs):
        asked.append((self.name, self.info.file_format.value))
        raise OSError("No space left on device\nand more")

    monkeypatch.setattr(tfds_sets.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(tfds_sets, "_network", lambda: True)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(data.DataError, match="preparing it failed: No space left on device") as error:
        load(tmp_path, tmp_path, "cifar100")
    assert asked == [("cifar100", "array_record")]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar01", r"unknown data set 'cifar01'; did you mean 'cifar10'\?"),
        ("minst", "did you mean 'mnist'"),
        ("qqqqqqqqq", "try one of mixture, .*, cifar10"),
        ("../../etc", "is no name of a data set"),
        (
            "penguins",
            "'penguins' is no classification of images or texts: expected 'label' and 'image' or 'text', found",
        ),
    ],
)
def test_names_that_are_no_data_set(tmp_path, name, message):
    with pytest.raises(data.DataError, match=message):
        load(tmp_path, tmp_path, name)


def test_a_folder_that_does_not_exist(tmp_path, monkeypatch):
    with pytest.raises(data.DataError, match="--data_dir '/no/where' is not a folder"):
        data.load("cifar10", data_dir="/no/where")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "gone"))
    with pytest.raises(data.DataError, match=r"TFDS_DATA_DIR .*gone' is not a folder"):
        data.load("cifar10")


@pytest.mark.slow
def test_real_cifar10(tfds_dir, tmp_path):
    cifar = data.load("cifar10", data_dir=tfds_dir, cache_dir=str(tmp_path))
    assert cifar.inputs.shape == (50_000, 32, 32, 3)
    assert (np.bincount(cifar.labels) == 5_000).all()
    mean = np.asarray(cifar.inputs[::10], np.float32).mean((0, 1, 2)) / 255
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=0.005)  # the set's well-known means


def test_importing_the_package_is_light_and_changes_nothing():
    program = (
        "import jax; before = dict(jax.config.values); import sp_jax, sys;"
        "assert dict(jax.config.values) == before;"
        "heavy = {'tensorflow_datasets', 'matplotlib', 'tensorflow', 'torch', 'grain'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    root = pathlib.Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root)
    assert jax.config.jax_numpy_rank_promotion == "raise"


def test_tokens_are_hashed_words_of_the_text_alone():
    one = text.tokens("A <br /><br />GOOD film, isn't it?", 8)
    assert one.dtype == np.int32
    np.testing.assert_array_equal(one, text.tokens(b"a good film isn't it", 8))
    assert (one[:5] > 0).all()
    assert (one[5:] == 0).all()
    assert one.max() < text.VOCABULARY
    np.testing.assert_array_equal(text.tokens("one two three", 2), text.tokens("one two", 2))
    assert (text.tokens("", 3) == 0).all()
    assert (text.tokens(b"\xff\xfe caf\xc3\xa9", 3) > 0).sum() == 1
    words = [f"word{i}" for i in range(20_000)]
    counts = np.bincount([text.tokens(word, 1)[0] for word in words], minlength=text.VOCABULARY)
    assert counts[0] == 0
    assert counts.max() < 15  # evenly spread


@pytest.mark.parametrize(("name", "shape", "classes"), [
    ("mixture_source", (6000, 8, 8, 1), 10), ("textures", (3000, 8, 8, 1), 10), ("reviews", (3000, 24), 2),
])  # fmt: skip
def test_embedded_sets_are_always_the_same(name, shape, classes):
    one, two = data.load(name), data.load(name)
    assert (one.inputs.shape, one.num_classes, one.name) == (shape, classes, name)
    np.testing.assert_array_equal(one.inputs, two.inputs)
    assert set(np.unique(one.labels)) == set(range(classes))
    assert np.bincount(one.labels).min() > 0.5 * len(one.labels) / classes


def test_related_mixtures_have_related_centres():
    one, two = data.mixture(), data.mixture_source()

    def means(found):
        return np.array([found.inputs[found.labels == c].reshape(-1, 64).mean(0) for c in range(10)])

    same, other = (np.corrcoef(means(one).ravel(), np.roll(means(two), shift, 0).ravel())[0, 1] for shift in (0, 1))
    assert same > 0.5 > abs(other) + 0.2


def test_labels_of_the_synthetic_reviews_follow_their_words():
    found = data.reviews()
    good, bad = ({int(text.tokens(f"{side}{i}", 1)[0]) for i in range(40)} for side in ("good", "bad"))
    negation = int(text.tokens("not", 1)[0])
    right = 0
    for tokens, label in zip(found.inputs, found.labels, strict=True):
        score = 0
        for before, word in zip([0, *tokens], tokens, strict=False):
            side = (int(word) in good) - (int(word) in bad)
            score += -side if before == negation else side
        right += (score > 0) == label
    assert 0.9 < right / len(found.labels) < 0.98


@pytest.mark.slow
def test_reviews_of_imdb():
    folder = os.environ.get("TFDS_DATA_DIR")
    if not folder or not pathlib.Path(folder, "imdb_reviews").is_dir():
        pytest.skip("TFDS_DATA_DIR has no imdb_reviews")
    found = data.load("imdb_reviews")
    assert (found.inputs.shape, found.inputs.dtype, found.num_classes) == ((25_000, text.TOKENS), np.int32, 2)
    assert found.labels.mean() == 0.5
    assert (found.inputs[:, 0] > 0).all()
