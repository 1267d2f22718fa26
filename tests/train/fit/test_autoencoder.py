"""The autoencoder of faces: it learns to redraw them, and is kept at several ages."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from skimage.data import astronaut

from train.__main__ import main
from train.attacks.autoencoder import load_autoencoder
from train.data.manifest import PreparedConfig
from train.errors import TrainError
from train.fit.autoencoder import redrawing_loss, train_autoencoder


@pytest.fixture
def faces(face_record, write_faces):
    """A folder with the astronaut's face, four times, brighter each time."""
    portrait = Image.fromarray(astronaut()[:220, 110:330]).resize((128, 128))
    pictures = [
        np.clip(np.asarray(portrait) * gain, 0, 255).astype(np.uint8)
        for gain in (0.7, 0.8, 0.9, 1.0)
    ]
    records = [face_record(str(number)) for number in range(4)]
    about = PreparedConfig(size_px=128, margin=2.0, code_version="test")
    return write_faces(records, prepared=about, pictures=pictures)


def _off(path):
    image = torch.from_numpy(astronaut()[60:156, 170:266].copy()).permute(2, 0, 1)[None] / 255
    return float(redrawing_loss(load_autoencoder(path)(image), image))


def test_it_learns_to_redraw_a_face_and_older_ages_do_better(faces, tmp_path):
    kept = train_autoencoder(faces, tmp_path / "out", steps=40, ages=3, width=6, code=4)
    assert [path.name for path in kept] == [f"6x4-{n}.safetensors" for n in (10, 20, 40)]
    young, _, old = map(_off, kept)
    assert old < 0.9 * young


def test_equal_seeds_give_equal_weights_and_others_differ(faces, tmp_path):
    (first,), (again,), (other,) = (
        train_autoencoder(
            faces, tmp_path / name, steps=2, ages=1, width=4, code=2, seed=int(name[-1])
        )
        for name in ("a1", "b1", "c2")
    )
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()


def test_a_split_without_faces_is_refused(faces, tmp_path):
    with pytest.raises(TrainError, match="no bona fide face of split dev"):
        train_autoencoder(faces, tmp_path, steps=1, split="dev")


def test_the_command_names_what_it_kept(faces, tmp_path):
    arguments = [str(faces), "--out", str(tmp_path), "--steps", "4", "--ages", "2", "--width", "4"]
    result = CliRunner().invoke(main, ["autoencoder", *arguments])
    assert result.exit_code == 0, result.output
    for steps in (2, 4):
        path = tmp_path / f"4x12-{steps}.safetensors"
        assert str(path) in result.output
        assert load_autoencoder(path).training is False


def test_an_attack_sheet_shows_what_autoencoders_draw(faces, tmp_path):
    (network,) = train_autoencoder(faces, tmp_path, steps=1, ages=1, width=4)
    sheets = [tmp_path / "with.png", tmp_path / "without.png"]
    for sheet, more in zip(sheets, (["--autoencoder", str(network)], []), strict=True):
        arguments = ["--prepared", str(faces), "--out", str(sheet), "--rows", "2", *more]
        assert CliRunner().invoke(main, ["attack-sheet", *arguments]).exit_code == 0
    with Image.open(sheets[0]) as drawn, Image.open(sheets[1]) as plain:
        assert drawn.width - plain.width == 2 * 128
    assert '"family": "swap"' in sheets[0].with_suffix(".jsonl").read_text()
