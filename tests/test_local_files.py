"""Files that are none: pipes, devices, links in a circle, terabytes of nothing."""

import os
import signal
import tarfile

import pytest
import tiny_run
from clip_checkpoints import TINY, make_clip, save_clip

from must_jax import local_files
from must_jax.class_names.files import read_entries
from must_jax.convert import convert
from must_jax.data.decode import UndecodableImageError
from must_jax.data.sources import open_source
from must_jax.errors import UserError
from must_jax.pages.document import write_page
from must_jax.tokenizer import load_tokenizer


@pytest.fixture(autouse=True)
def _in_bounded_time():
    """A read that waits for ever fails its test, not all that follow."""

    def fail(*_):
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def sparse(path):
    path.touch()
    os.truncate(path, 2**43)  # more than any machine's memory


ODD = {
    "pipe": (os.mkfifo, "not a regular file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "sparse": (sparse, "larger than"),
}
odd_files = pytest.mark.parametrize(("make", "reason"), ODD.values(), ids=ODD)


def test_what_is_read(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"\xef\xbb\xbfa\r\nb\rc\n")
    assert local_files.read_bytes(path, limit=10) == path.read_bytes()
    assert local_files.read_text(path, encoding="utf-8-sig") == "a\nb\nc\n"
    with pytest.raises(OSError, match="larger than 0 MiB"):
        local_files.read_bytes(path, limit=9)
    with pytest.raises(IsADirectoryError):
        local_files.read_bytes(tmp_path)


def test_more_than_memory_holds_is_told(tmp_path):
    sparse(tmp_path / "x")
    with pytest.raises(OSError, match=r"larger than \d+ MiB"):
        local_files.read_bytes(tmp_path / "x")


CIRCLE = (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links")


@pytest.mark.parametrize(("make", "reason"), [*ODD.values(), CIRCLE], ids=[*ODD, "circle"])
def test_images(make, reason, tmp_path):
    (tmp_path / "images").mkdir()
    make(tmp_path / "images/x.png")
    (tmp_path / "list.csv").write_text("path\nimages/x.png\n")
    for path in ("images", "list.csv"):
        with pytest.raises(UndecodableImageError, match=f"images/x.png: {reason}"):
            open_source(tmp_path / path).read(0)


@odd_files
@pytest.mark.parametrize("name", ["x.csv", "x.parquet", "x.tar", "x.array_record"])
def test_sources_of_one_file(make, reason, name, tmp_path):
    make(tmp_path / name)
    with pytest.raises(UserError, match=name.replace(".", r"\.")) as error:
        open_source(tmp_path / name)
    if make is not sparse:
        assert reason in str(error.value)


@odd_files
@pytest.mark.parametrize("name", ["x.txt", "x.json", "x.yaml"])
def test_names_and_templates(make, reason, name, tmp_path):
    make(tmp_path / name)
    with pytest.raises(UserError, match=f"{name}: cannot be read .{reason}"):
        read_entries(tmp_path / name, what="names", columns=False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_clip(make_clip(**TINY), tmp_path_factory.mktemp("clip") / "source")


@odd_files
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocab.json"])
def test_folders_of_checkpoints(make, reason, name, checkpoint, tmp_path):
    for file in checkpoint.iterdir():
        if file.name != name:
            (tmp_path / file.name).symlink_to(file)  # as Hugging Face's cache has them
    make(tmp_path / name)
    with pytest.raises(UserError, match=str(tmp_path)):
        convert(tmp_path, tmp_path / "target")
    assert not (tmp_path / "target").exists()


@odd_files
@pytest.mark.parametrize("name", ["shard.safetensors", "shard.bin"])
def test_shards_of_checkpoints(make, reason, name, checkpoint, tmp_path):
    for file in checkpoint.iterdir():
        if file.name != "model.safetensors":
            (tmp_path / file.name).symlink_to(file)
    kind = "model.safetensors" if name.endswith("safetensors") else "pytorch_model.bin"
    (tmp_path / f"{kind}.index.json").write_text(f'{{"weight_map": {{"x": "{name}"}}}}')
    make(tmp_path / name)
    with pytest.raises(UserError, match=name) as error:
        convert(tmp_path, tmp_path / "target")
    if make is not sparse:
        assert reason in str(error.value)


@odd_files
def test_files_of_weights(make, reason, tmp_path):
    make(tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x\.pt") as error:
        convert(tmp_path / "x.pt", tmp_path / "target")
    if make is not sparse:
        assert reason in str(error.value)


def test_a_tokenizer_of_no_end_is_not_copied(checkpoint, tmp_path):
    sparse(tmp_path / "spiece.model")
    told = r"spiece\.model: larger than 128 MiB"
    with pytest.raises(UserError, match=told):
        convert(checkpoint, tmp_path / "target", tokenizer=tmp_path)
    with pytest.raises(UserError, match=told):
        load_tokenizer(tmp_path, spec=tiny_run.SPEC.text)


def a_pipe_with_a_reader(path):
    os.mkfifo(path)
    os.open(path, os.O_RDONLY | os.O_NONBLOCK)


@pytest.mark.parametrize(
    "lay", [os.mkfifo, a_pipe_with_a_reader, lambda path: path.symlink_to("mine.html")]
)
def test_a_page_is_written_to_its_own_file_alone(lay, tmp_path):
    (tmp_path / "mine.html").write_text("mine")
    lay(tmp_path / "page.html.tmp")
    with pytest.raises(OSError, match=r"page\.html\.tmp"):
        write_page(tmp_path / "page.html", "<p/>")
    assert (tmp_path / "mine.html").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.html"]
    # What was in the way is gone.
    write_page(tmp_path / "page.html", "<p>é</p>")
    assert (tmp_path / "page.html").read_bytes() == "<p>é</p>".encode()


def tar_of(name, *, size):
    """The start of an archive, which claims a member of any size."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def test_members_of_archives(tmp_path):
    path = tmp_path / "x.tar"
    with path.open("wb") as file:
        file.write(tar_of("a.png", size=2**40))
        file.seek(2**40, os.SEEK_CUR)
        file.write(bytes(1024))
    with pytest.raises(UndecodableImageError, match=r"x\.tar:a: larger than 256 MiB"):
        open_source(path).read(0)
    path.write_bytes(tar_of("a.png", size=0) + tar_of("a.cls", size=2**40))
    os.truncate(path, 2**41)
    with pytest.raises(UserError, match=r"x\.tar:a: .*a\.cls: larger than 1 MiB"):
        open_source(path)
